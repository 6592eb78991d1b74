"""Limits on requests."""

from dataclasses import dataclass, fields

from boxwright.config import require


@dataclass(frozen=True)
class Limits:
    """What a request may contain. Anything over a limit is refused with a reason, at little cost.

    Attributes:
        bytes: largest request; 16 MB by default.
        pixels: largest image, by its header; 33 million by default, which take 100 MB when decoded.
        images: most images per request.
        seconds: longest time for a request to arrive, and again for it to be computed.
        queue: most images waiting or being computed; further requests get status 503. Bodies that are still arriving
            are not counted, but together have no more bytes than this many requests may have.
    """

    bytes: int = 2**24
    pixels: int = 2**25
    images: int = 16
    seconds: float = 30.0
    queue: int = 64

    def check(self) -> None:
        """Raise `UserError` for a limit that lets nothing through."""
        for field in fields(self):
            value = getattr(self, field.name)
            require(value > 0, f"--limits.{field.name} must be over 0, not {value}.")
        fits = self.images <= self.queue
        require(fits, f"--limits.queue must hold the {self.images} images of one request, not {self.queue}.")
