"""placeholder"""
def unavailable(device: str) -> str | None:
    return "not built"
