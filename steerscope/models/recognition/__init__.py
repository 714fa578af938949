"""Recognise the blocks of an unknown model by what they compute: a pass is traced and an equation fitted to it."""

from steerscope.models.recognition.below import reads_below
from steerscope.models.recognition.recognise import recognised

__all__ = ["reads_below", "recognised"]
