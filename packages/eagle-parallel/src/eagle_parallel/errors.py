"""The error for what the public interface names and this version does not contain, so that nothing degrades silently."""


class NotYetSupported(NotImplementedError):
    """A documented part that this version does not contain; the message names what to use instead."""
