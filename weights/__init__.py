"""The weights that ship; `manifest.json` says what each is for. Data only: `mdrn_plugin.zoo` reads it."""
