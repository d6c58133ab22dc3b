"""Programs that run in environments of their own, see `process`; nothing here imports them."""
