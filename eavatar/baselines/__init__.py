"""Methods that the paper compares with, as published, on our data: NeRFace and HAvatar."""
