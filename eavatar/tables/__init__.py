"""Stage `tables`: metrics, tables and the report page."""
