"""The only room that touches a device: tiles, ensemble, precision, running a network."""
