"""Stand-in for what FlexiCubes imports: a check of tensors' shapes that it calls on its input."""


def check_tensor(*_: object, **__: object) -> bool:
    return True
