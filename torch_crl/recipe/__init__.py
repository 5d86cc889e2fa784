"""All that decides a run: the record, its presets, its checks and what it costs."""
