"""The napari plugin: widgets around the core, a reader, sample data.

`layers` and `work` know no Qt and no viewer; the widgets only collect wishes, show what happens and
put the result on the screen. Nothing here denoises: all of it goes through `mdrn_plugin.pipeline`.
"""
