"""The weights that ship, and `manifest.json`, which says what each is for. Data only: `mdrn_plugin.zoo` reads it."""
