"""The settings of a run: the record, its presets, its checks and what a run of it costs."""
