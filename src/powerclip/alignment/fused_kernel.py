"""The alignment as one Triton kernel: from vectors to scores or hardest negatives, s never in memory.

A program scores ``Tile.rows`` phrase slots, ``Tile.slots`` of each of several captions, with ``Tile.images`` images.
For each region it multiplies all of D and adds to three numbers per slot and image, which stay in registers (the
formulas of ``tiled``): sum s, sum |s| and prod (1 + 2^-|y|) with y = s / (tau log 2). Captions have different numbers
of phrases: they are sorted by it, and a program takes as many chunks of slots as its longest caption needs, with a
running mean and a running log-sum-exp. Then it either stores T1 and T2 or goes on to the search: one atomic maximum per
row and column on 64-bit keys, the score's bits in order above the inverted index, so that ties go to the lowest index
whatever the order of the programs; and sums of the rows and columns of each tile, which are added up in a fixed order.

The vectors are packed beforehand: phrases that are present come first, and D, slots, captions and images are padded to
whole tiles with zeros. So no load has a mask. A phrase slot or a region that is zero has s = 0 and a factor of 2, which
is subtracted as 1 in its logarithm.
"""

import triton
import triton.language as tl

from powerclip.alignment.aggregators import ABSENT

INTERPRETED = triton.knobs.runtime.interpret
"""Whether Triton runs in its interpreter, on the CPU (TRITON_INTERPRET=1 when this module is imported)."""

LOWEST_INDEX = 2**32 - 1
"""Keys hold the index with these bits flipped, so that the larger of two keys with equal scores has the lower index."""

_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_ABSENT: tl.constexpr = tl.constexpr(ABSENT)
_LOWEST_INDEX: tl.constexpr = tl.constexpr(LOWEST_INDEX)
_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def _ordered(x):
    """int64 numbers in the order of float32 numbers; 0.0 and -0.0 are equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _place(J, I, CAPTIONS: tl.constexpr, IMAGES: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile of captions and tile of images: for each of images, programs go through GROUP of captions."""
    caption_tiles, image_tiles = J // CAPTIONS, I // IMAGES
    first = tl.program_id(0) // (GROUP * image_tiles) * GROUP
    size = tl.minimum(caption_tiles - first, GROUP)
    within = tl.program_id(0) % (GROUP * image_tiles)
    return first + within % size, within // size


@triton.jit
def _products(phrase_at, region_at, D, PRECISION: tl.constexpr):
    """(IMAGES, ROWS) inner products over D, of phrases at (DEPTH, ROWS) pointers and regions at (IMAGES, DEPTH)."""
    s = tl.zeros((region_at.shape[0], phrase_at.shape[1]), tl.float32)
    for start in range(0, D, phrase_at.shape[0]):
        p, r = tl.load(phrase_at + start), tl.load(region_at + start)
        if _INTERPRETED:  # it multiplies the bits of bfloat16
            p, r = p.to(tl.float32), r.to(tl.float32)
        s = tl.dot(r, p, s, input_precision=PRECISION)
    return s


@triton.jit
def _sums(
    phrase_at,
    region_at,
    region_size,
    M,
    D,
    rate,  # |y| = rate |s|
    HARD: tl.constexpr,
    REGIONS_PER_LOGARITHM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Over the regions, (IMAGES, ROWS) each: the sum of s, the sum of |s|, and log2 of the product of 1 + 2^-|y|."""
    linear = tl.zeros((region_at.shape[0], phrase_at.shape[1]), tl.float32)
    absolute = tl.zeros_like(linear)
    product = tl.full(linear.shape, 1.0, tl.float32)
    logarithm = tl.zeros_like(linear)  # of the products before
    for m in range(0, M):
        s = _products(phrase_at, region_at + m * region_size, D, PRECISION)
        linear += s
        absolute += tl.abs(s)
        if not HARD:
            product += product * tl.exp2(tl.abs(s) * -rate)
            if REGIONS_PER_LOGARITHM:  # noqa: SIM102 (decided when the kernel is compiled; the next one when it runs)
                if (m + 1) % REGIONS_PER_LOGARITHM == 0:
                    logarithm += tl.log2(product)
                    product = tl.full(linear.shape, 1.0, tl.float32)
    return linear, absolute, logarithm + tl.log2(product)


@triton.jit
def _with_chunk(t1, highest, exponentials, softplus, exponent, is_phrase, HARD: tl.constexpr):
    """The running sum and log-sum-exp of (IMAGES, CAPTIONS), continued with a chunk of (IMAGES, CAPTIONS, SLOTS)."""
    t1 += tl.sum(tl.where(is_phrase, softplus, 0.0), axis=2)
    exponent = tl.where(is_phrase, exponent, _ABSENT)
    higher = tl.maximum(highest, tl.max(exponent, axis=2))
    if not HARD:
        now = tl.where(is_phrase, tl.exp2(exponent - higher[:, :, None]), 0.0)
        exponentials = exponentials * tl.exp2(highest - higher) + tl.sum(now, axis=2)
    return t1, higher, exponentials


@triton.jit
def _search(x, valid, negative, offset, index, key_at, sum_at, AXIS: tl.constexpr):
    """Along an axis of the tile's scores x: store the sum of the valid ones,
    raise the keys to the hardest negative's."""
    tl.store(sum_at, tl.sum(tl.where(valid, x, 0.0), axis=AXIS))
    keys = (_ordered(tl.where(negative, x - offset, _ABSENT)) << 32) | (index ^ _LOWEST_INDEX)
    tl.atomic_max(key_at, tl.max(keys, axis=AXIS), sem="relaxed")


@triton.jit
def align(
    phrases,  # (chunks, J, SLOTS, D)
    regions,  # (M, I, D)
    captions,  # (4, J) int64: number of phrases, index, id, whether it takes part
    images,  # (4, I) int64: number of regions, index, id, whether it takes part
    caption_offset,  # (J,)
    image_offset,  # (I,)
    factors,  # (2,): what products are multiplied with to be s, zeta
    tau,
    J,
    I,
    M,
    D,
    scores,  # STORE: (2, J, I), T1 and T2
    caption_key,  # else: (J,) and (I,) int64 keys of the hardest negatives
    image_key,
    caption_sum,  # (tiles of images, J)
    image_sum,  # (tiles of captions, I)
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    IMAGES: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    HARD: tl.constexpr,
    REGIONS_PER_LOGARITHM: tl.constexpr,  # 0: all
    DIRECTION: tl.constexpr,
    BY_REGIONS: tl.constexpr,
    STORE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of images and captions; see the module's docstring."""
    CAPTIONS: tl.constexpr = ROWS // SLOTS
    caption_tile, image_tile = _place(J, I, CAPTIONS, IMAGES, GROUP)
    c = caption_tile * CAPTIONS + tl.arange(0, CAPTIONS)
    i = image_tile * IMAGES + tl.arange(0, IMAGES)
    count = tl.load(captions + c).to(tl.int32)  # (CAPTIONS,) phrases
    present = tl.load(images + i).to(tl.float32)  # (IMAGES,) regions
    scale, zeta = tl.load(factors), tl.load(factors + 1)
    unit = tau * _LN_2 if not HARD else 1.0  # y = s / unit
    d = tl.arange(0, DEPTH)
    row = caption_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    phrase_at = phrases + row[None, :] * D + d[:, None]
    region_at = regions + i.to(tl.int64)[:, None] * D + d[None, :]
    chunk_size, region_size = J.to(tl.int64) * SLOTS * D, I.to(tl.int64) * D  # elements

    t1 = tl.zeros((IMAGES, CAPTIONS), tl.float32)  # sum over the phrases so far, in units
    highest = tl.full((IMAGES, CAPTIONS), _ABSENT, tl.float32)  # of the exponents of T2 so far, in units
    exponentials = tl.zeros((IMAGES, CAPTIONS), tl.float32)  # sum of 2^(exponent - highest)
    for chunk in range(0, tl.cdiv(tl.max(count), SLOTS)):
        at = phrase_at + chunk * chunk_size
        linear, absolute, logarithm = _sums(
            at, region_at, region_size, M, D, scale / unit, HARD, REGIONS_PER_LOGARITHM, PRECISION
        )
        linear *= scale / unit / 2
        absolute *= scale / unit / 2
        softplus, even = linear + absolute, absolute
        if not HARD:
            # An absent region adds 1 to the logarithm: M - present of softplus, and M of log cosh less its log 2.
            softplus += logarithm - (M - present)[:, None]
            even += logarithm - M
        softplus = tl.reshape(softplus, (IMAGES, CAPTIONS, SLOTS))
        exponent = tl.reshape(linear + zeta * even, (IMAGES, CAPTIONS, SLOTS))
        is_phrase = (chunk * SLOTS + tl.arange(0, SLOTS))[None, :] < count[:, None]  # (CAPTIONS, SLOTS)
        t1, highest, exponentials = _with_chunk(
            t1, highest, exponentials, softplus, exponent, is_phrase[None, :, :], HARD
        )

    scored = (count > 0)[None, :] & (present > 0)[:, None]
    t1 = tl.where(scored, t1 * unit / tl.maximum(count, 1).to(tl.float32)[None, :], 0.0)
    if not HARD:
        highest += tl.log2(tl.where(scored, exponentials, 1.0))
    t2 = tl.where(scored, highest * unit, 0.0)
    j = tl.load(captions + J + c)  # captions are sorted, what is stored is not
    if STORE:
        at = j[None, :] * I + i[:, None]
        tl.store(scores + at, t1)
        tl.store(scores + at + J.to(tl.int64) * I, t2)
    else:
        x = t1 if DIRECTION == "t2r" else (t2 if DIRECTION == "r2t" else t1 + t2)
        if BY_REGIONS:
            x /= tl.maximum(present, 1.0)[:, None]
        valid = (tl.load(captions + 3 * J + c) != 0)[None, :] & (tl.load(images + 3 * I + i) != 0)[:, None]
        negative = valid & (tl.load(captions + 2 * J + c)[None, :] != tl.load(images + 2 * I + i)[:, None])
        offset, index = tl.load(image_offset + i)[:, None], tl.load(images + I + i)[:, None]
        sum_at = caption_sum + image_tile.to(tl.int64) * J + j
        _search(x, valid, negative, offset, index, caption_key + j, sum_at, AXIS=0)
        offset, index = tl.load(caption_offset + c)[None, :], j[None, :]
        sum_at = image_sum + caption_tile.to(tl.int64) * I + i
        _search(x, valid, negative, offset, index, image_key + i, sum_at, AXIS=1)
