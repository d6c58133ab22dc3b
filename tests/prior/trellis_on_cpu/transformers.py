"""Stand-in: TRELLIS imports these names for text, which is not asked for."""

CLIPTextModel = AutoTokenizer = None
