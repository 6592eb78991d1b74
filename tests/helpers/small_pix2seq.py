"""The shape of a `pix2seq` small enough for tests."""

from boxwright.models.pix2seq import Pix2SeqConfig

CONFIG = Pix2SeqConfig(
    backbone="test_efficientnet", image_size=96, encoder_layers=1, encoder_dim=32, encoder_hidden=64, encoder_heads=4,
    decoder_layers=2, decoder_dim=24, decoder_hidden=48, decoder_heads=3, max_objects=6, length=32, bins=50,
    first_coordinate=120, vocabulary=180,
)  # fmt: skip
