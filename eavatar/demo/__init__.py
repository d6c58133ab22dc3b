"""The embedded subject: a generated head, recorded as a raw NeRSemble capture."""
