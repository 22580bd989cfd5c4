"""How much is read of files that others have made: what exceeds a limit is a bad sample or a broken shard, no crash.

The limit of an image's pixels is that of its masks: ``powerclip.regions.annotation.MAX_PIXELS``.
"""

MAX_MEMBER_BYTES = 64 * 2**20
"""A larger image in a shard is not read."""

MAX_CAPTION_BYTES = 2**20
"""A larger caption is refused; a text tower reads some hundred characters."""

MAX_CAPTIONS = 256
"""An image has no more captions."""

MAX_ANNOTATION_BYTES = 4 * 2**20
"""A larger file of another kind is not read: parsed, it takes about twenty times its size. The phrases that prepare
makes of a caption, and 64 masks of any image, take less."""

MAX_JSON_DEPTH = 100
"""Deeper JSON is refused: what is read must be written again, and Python's writer does not go as deep as its reader."""

MAX_FILES = 64
"""Files of a sample; any beyond these are skipped."""

MAX_HEADER_BYTES = 2**20
"""Limit of a member's headers (long names, pax records, maps of holes), which tarfile reads into memory."""

MAX_NAME = 4096
"""Characters of a member's name with its folders, as of a path on Linux; a member with a longer one is skipped."""

MAX_HEADER_DIGITS = 128
"""Digits in a row in a member's headers:
Python before 3.11.10 and 3.12.6 takes time quadratic in them (CVE-2024-6232)."""

MAX_SAMPLES = 200_000
"""Samples of a shard that can be trained on: their places are held in memory. Published shards hold 10,000."""
