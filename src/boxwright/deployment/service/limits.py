"""What one caller may ask of the service."""

from dataclasses import dataclass, fields

from boxwright.config import require


@dataclass(frozen=True)
class Limits:
    """How much is taken in. What is over a limit is refused with a reason, and costs little.

    Attributes:
        bytes: of a request, 16 MB by default.
        pixels: of an image, as its header says; 33 million by default, which take 100 MB once decoded.
        images: in a request.
        seconds: for a request to arrive, and again for it to be computed.
        queue: images that may be waiting or in work; who comes then is told to come back (503). Bodies on their way
            take no place, but all together hold no more bytes than so many requests.
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
