"""Limits on requests, and the error of one that is refused."""

from dataclasses import dataclass, fields

from boxwright.config import UserError, require


class RequestError(UserError):
    """A request that is refused, with its status."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a request may contain. Anything over a limit is refused with a reason, at little cost.

    Attributes:
        bytes: largest request; 16 MB by default.
        pixels: largest image, by its header; 33 million by default. Decoding may take 10 bytes for each of them, 335
            MB, for all images together; an image that needs more, as a WebP of over 20 million pixels, is refused.
        images: most images per request.
        seconds: longest time for a request to arrive, and again for it to be computed.
        queue: most images waiting or being computed; further requests get status 503. Requests that are still arriving
            are not counted, but all together hold no more bytes than eight of the largest.
    """

    bytes: int = 2**24
    pixels: int = 2**25
    images: int = 16
    seconds: float = 30.0
    queue: int = 64

    @property
    def decoding_bytes(self) -> int:
        """The most memory that decoding an image may take."""
        return 10 * self.pixels

    @property
    def held_bytes(self) -> int:
        """The most bytes of all requests that are arriving or waiting, together."""
        return min(self.queue, 8) * self.bytes

    def check(self) -> None:
        """Raise `UserError` for a limit that lets nothing through."""
        for field in fields(self):
            value = getattr(self, field.name)
            require(value > 0, f"--limits.{field.name} must be over 0, not {value}.")
        fits = self.images <= self.queue
        require(fits, f"--limits.queue must hold the {self.images} images of one request, not {self.queue}.")
