"""Stand-in: TRELLIS imports it to cut images out that come without an alpha channel."""
