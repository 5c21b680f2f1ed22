"""Draw the pictures of docs/concepts/ and docs/how_it_works.md in English and Chinese.

    python scripts/concept_drawings.py

Each picture shows which numbers a method trains. All colours have enough contrast on white and on dark ground.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "img"
TRAINED, FROZEN, LINE, LIGHT = "#c2410c", "#5f6f85", "#7b8794", "#ffffff"
"""Trained numbers, frozen numbers, lines and text on the ground of the page, text in boxes."""
FONT = "system-ui, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"


class Drawing:
    """A picture.

    Args:
        width, height: size in pixels.
        title: title in English and in Chinese.
        is_chinese: whether the words of the picture are Chinese.
    """

    def __init__(self, width: int, height: int, title: tuple[str, str], *, is_chinese: bool) -> None:
        self.size, self.is_chinese = (width, height), is_chinese
        self.parts = [f"<title>{escape(self.word(title))}</title>"]

    def word(self, words: str | tuple[str, str]) -> str:
        """Return words in the language of the picture."""
        return words if isinstance(words, str) else words[self.is_chinese]

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        words: str | tuple[str, str] = "",
        *,
        fill: str = FROZEN,
        size: float = 15,
        radius: float = 5,
    ) -> None:
        """Draw a box with words in its middle; the fill `none` leaves only its frame."""
        stroke = f' stroke="{LINE}" stroke-width="1.5"' if fill == "none" else ""
        rect = (
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}"{stroke}/>'
        )
        self.parts.append(rect)
        colour = LINE if fill == "none" else LIGHT
        lines = self.word(words).split("\n")
        for index, line in enumerate(lines):
            middle = y + height / 2 + (index - (len(lines) - 1) / 2) * size * 1.25
            self.text(x + width / 2, middle, line, fill=colour, size=size)

    def text(
        self,
        x: float,
        y: float,
        words: str | tuple[str, str],
        *,
        fill: str = LINE,
        size: float = 16,
        anchor: str = "middle",
    ) -> None:
        """Write words around the height y."""
        if self.word(words):
            position = (
                f'x="{x:g}" y="{y + size * 0.35:g}" text-anchor="{anchor}" font-size="{size:g}" font-weight="600"'
            )
            self.parts.append(f'<text {position} fill="{fill}">{escape(self.word(words))}</text>')

    def cell(self, x: float, y: float, width: float, height: float) -> None:
        """Draw a vector that the frozen model computes, inside a box of frozen numbers."""
        position = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
        self.parts.append(f'<rect {position} fill="none" stroke="{LIGHT}" stroke-width="1.3" stroke-opacity="0.75"/>')

    def path(self, commands: str, *, fill: str = "none", arrow: bool = False, dashed: bool = False) -> None:
        """Draw a line or a filled shape."""
        stroke = f' stroke="{LINE}" stroke-width="2"' if fill == "none" else ""
        end = ' marker-end="url(#arrow)"' if arrow else ""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<path d="{commands}" fill="{fill}"{stroke}{end}{dashes}/>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw an arrow through points."""
        self.path("M" + " L".join(f"{x:g} {y:g}" for x, y in points), arrow=True)

    def circle(self, x: float, y: float, sign: str, *, fill: str = LINE) -> None:
        """Draw an operation."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="13" fill="none" stroke="{fill}" stroke-width="2"/>')
        self.text(x, y, sign, fill=fill, size=17)

    def legend(self, x: float, y: float) -> None:
        """Explain the colours."""
        self.box(x, y - 9, 22, 18, fill=TRAINED, radius=3)
        self.text(x + 30, y, ("trained", "训练"), anchor="start", size=15)
        self.box(x + 110, y - 9, 22, 18, fill=FROZEN, radius=3)
        self.text(x + 140, y, ("frozen", "冻结"), anchor="start", size=15)

    def svg(self) -> str:
        """Return the picture."""
        width, height = self.size
        marker = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
            f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        )
        return "\n".join(
            [f'{head} font-family="{FONT}" role="img">', self.parts[0], marker, *self.parts[1:], "</svg>\n"]
        )


WORDS = (("where", "我的"), ("is", "快递"), ("my", "到"), ("parcel", "哪里"), ("?", "了"))
BLOCKS = (("block L", "第 L 层"), ("…", "…"), ("block 2", "第 2 层"), ("block 1", "第 1 层"))
VIRTUAL, LEFT, VIRTUAL_WIDTH, WORD_WIDTH = 4, 178, 52, 76


def columns() -> list[tuple[float, float]]:
    """Return the left end and the width of the column of each virtual token, then of each word."""
    found, x = [], float(LEFT)
    for index in range(VIRTUAL + len(WORDS)):
        width = VIRTUAL_WIDTH if index < VIRTUAL else WORD_WIDTH
        found.append((x, width))
        x += width + (22 if index == VIRTUAL - 1 else 8)
    return found


def prompt_like(
    d: Drawing, *, at_embedding: bool, in_blocks: bool, head: bool, top: float = 40, computed: bool = True
) -> float:
    """Draw a stack of blocks over virtual tokens and words, and return the height under it.

    Args:
        d: drawing.
        at_embedding: whether the embeddings of virtual tokens are trained.
        in_blocks: whether keys and values of every block are trained.
        head: whether a classifier is trained, too.
        top: height of the stack.
        computed: whether the blocks compute vectors for virtual tokens.
    """
    right = columns()[-1][0] + columns()[-1][1] + 14
    y = top
    d.box(20, y, right - 20, 34, fill=TRAINED if head else FROZEN)
    name = ("classifier", "分类头") if head else ("output head", "输出头")
    d.text(96, y + 17, name, fill=LIGHT, size=15)
    y += 46
    for name in BLOCKS:
        d.box(20, y, right - 20, 42)
        d.text(96, y + 21, name, fill=LIGHT, size=15)
        for index, (x, width) in enumerate(columns()):
            if index < VIRTUAL and in_blocks:
                d.box(x, y + 6, width, 30, "K V", fill=TRAINED, size=14, radius=3)
            elif index >= VIRTUAL or computed:
                d.cell(x, y + 6, width, 30)
        y += 50
    d.box(20, y, right - 20, 42)
    d.text(96, y + 21, ("embedding", "嵌入"), fill=LIGHT, size=15)
    for index, (x, width) in enumerate(columns()):
        if index >= VIRTUAL:
            d.cell(x, y + 6, width, 30)
        elif at_embedding:
            d.box(x, y + 6, width, 30, f"e{index + 1}", fill=TRAINED, size=14, radius=3)
    y += 62
    for index, (x, width) in enumerate(columns()[VIRTUAL:]):
        d.text(x + width / 2, y, WORDS[index], size=16)
    return y


def prompt_tuning(d: Drawing) -> None:
    """Virtual tokens at the embedding."""
    y = prompt_like(d, at_embedding=True, in_blocks=False, head=False, top=16)
    d.text(LEFT + 116, y, ("virtual tokens", "虚拟标记"))
    d.legend(20, y + 34)


def p_tuning(d: Drawing) -> None:
    """Virtual tokens that a network computes."""
    y = prompt_like(d, at_embedding=True, in_blocks=False, head=False, top=16)
    d.arrow((LEFT + 116, y + 22), (LEFT + 116, y - 16))
    d.box(LEFT, y + 24, 232, 40, ("prompt encoder: MLP or LSTM", "提示编码器：MLP 或 LSTM"), fill=TRAINED, size=14)
    d.text(
        LEFT + 256,
        y + 44,
        ("only in training; inference reads its outputs", "只在训练时使用，推理读取它的输出"),
        anchor="start",
        size=15,
    )
    d.legend(20, y + 92)


def prefix_tuning(d: Drawing) -> None:
    """Keys and values in every block."""
    y = prompt_like(d, at_embedding=False, in_blocks=True, head=False, top=16)
    d.text(LEFT + 116, y, ("no token here", "这里没有标记"))
    d.legend(20, y + 34)


def p_tuning_v2(d: Drawing) -> None:
    """Keys and values in every block, and a classifier."""
    y = prompt_like(d, at_embedding=False, in_blocks=True, head=True, top=16)
    d.text(LEFT + 116, y, ("no token here", "这里没有标记"))
    d.legend(20, y + 34)


def bow_tie(d: Drawing, x: float, y: float, width: float = 74, height: float = 64) -> None:
    """Draw a bottleneck: wide, narrow, wide."""
    half, inner = height / 2, height / 7
    points = [(x, y - half), (x + width / 2, y - inner), (x + width, y - half)]
    points += [(x + width, y + half), (x + width / 2, y + inner), (x, y + half)]
    d.path("M" + " L".join(f"{a:g} {b:g}" for a, b in points) + " z", fill=TRAINED)


def adapter(d: Drawing) -> None:
    """Bottlenecks after attention and feed-forward layer."""
    y = 70.0
    d.text(22, y, "h", size=18)
    d.arrow((36, y), (58, y))
    for start, name in ((60.0, ("attention", "注意力")), (420.0, ("feed-forward", "前馈层"))):
        d.box(start, y - 32, 112, 64, name)
        d.arrow((start + 112, y), (start + 134, y))
        bow_tie(d, start + 136, y)
        d.arrow((start + 210, y), (start + 232, y))
        d.circle(start + 246, y, "+")
        d.arrow((start - 16, y), (start - 16, 14), (start + 246, 14), (start + 246, y - 14))
        d.arrow((start + 260, y), (start + 278, y))
        d.box(start + 280, y - 32, 56, 64, ("norm", "归一化"), fill=TRAINED, size=14)
        d.arrow((start + 336, y), (start + 358, y))
    d.text(200, 134, ("adapter", "适配器"), size=15)
    d.text(560, 134, ("adapter", "适配器"), size=15)
    d.text(20, 226, ("inside:", "内部："), anchor="start")
    d.box(110, 176, 60, 100, "d")
    d.arrow((170, 226), (196, 226))
    d.path("M200 176 L280 204 L280 248 L200 276 z", fill=TRAINED)
    d.text(240, 226, ("down", "降维"), fill=LIGHT, size=15)
    d.arrow((280, 226), (306, 226))
    d.box(308, 204, 60, 44, "m", fill="none")
    d.text(394, 226, "ReLU")
    d.arrow((420, 226), (442, 226))
    d.path("M446 204 L526 176 L526 276 L446 248 z", fill=TRAINED)
    d.text(486, 226, ("up", "升维"), fill=LIGHT, size=15)
    d.arrow((526, 226), (548, 226))
    d.circle(562, 226, "+")
    d.arrow((140, 276), (140, 294), (562, 294), (562, 241))
    d.arrow((576, 226), (606, 226))
    d.box(608, 176, 60, 100, "d")
    d.legend(20, 322)


def lora(d: Drawing) -> None:
    """Two thin matrices beside a frozen one."""
    d.text(26, 150, "x", size=20)
    d.arrow((40, 150), (66, 150), (66, 96), (128, 96))
    d.arrow((66, 150), (66, 254), (128, 254))
    d.box(130, 16, 200, 160, ("W\nd_out × d_in", "W\nd_out × d_in"), size=17)
    d.box(130, 230, 200, 48, ("A: r × d_in", "A：r × d_in"), fill=TRAINED, size=16)
    d.arrow((330, 254), (366, 254))
    d.box(368, 186, 48, 136, ("B", "B"), fill=TRAINED, size=18)
    d.text(392, 340, "d_out × r", size=15)
    d.arrow((416, 254), (470, 254))
    d.circle(486, 254, "×")
    d.text(486, 286, "α / r", size=16)
    d.arrow((486, 240), (486, 112))
    d.arrow((330, 96), (470, 96))
    d.circle(486, 96, "+")
    d.arrow((500, 96), (540, 96))
    d.text(556, 96, "y", size=20)
    d.text(548, 190, ("merging: W + (α / r) B A", "合并权重：W + (α / r) B A"), anchor="start", size=16)
    d.text(548, 216, ("the same size as W", "大小与 W 相同"), anchor="start", size=15)
    d.legend(20, 366)


def dora(d: Drawing) -> None:
    """Direction and magnitude."""
    d.box(20, 30, 150, 150, "W", size=20)
    d.text(190, 105, "+", size=24)
    d.box(212, 30, 38, 150, "B", fill=TRAINED, size=17)
    d.box(262, 70, 150, 38, "A", fill=TRAINED, size=17)
    d.text(337, 128, ("scaled by α / r", "乘以 α / r"), size=15)
    d.arrow((424, 105), (458, 105))
    d.box(460, 30, 150, 150, ("direction:\neach row\nhas length 1", "方向：\n每一行\n长度为 1"), fill="none", size=15)
    d.circle(634, 105, "×")
    d.box(662, 30, 40, 150, "m", fill=TRAINED, size=18)
    d.text(682, 200, ("magnitudes of rows", "每一行的幅度"), size=15)
    d.arrow((706, 105), (734, 105))
    d.text(756, 105, "W′", size=20)
    d.legend(20, 236)


def qlora(d: Drawing) -> None:
    """A base in 4 bits under LoRA."""
    d.text(26, 200, "x", size=20)
    d.arrow((40, 200), (60, 200), (60, 96), (82, 96))
    d.arrow((60, 200), (60, 256), (352, 256))
    d.box(84, 16, 150, 130, "", fill=FROZEN)
    for index in range(1, 15):
        d.parts.append(f'<path d="M{84 + index * 10} 16 V146" stroke="{LIGHT}" stroke-opacity="0.25"/>')
    for index in range(1, 13):
        d.parts.append(f'<path d="M84 {16 + index * 10} H234" stroke="{LIGHT}" stroke-opacity="0.25"/>')
    d.box(106, 56, 106, 50, ("4 bits: NF4\ncodes", "4 比特：NF4\n编码"), size=14)
    d.text(
        76, 168, ("64 weights share a scale of 8 bits", "每 64 个权重共用一个 8 比特的缩放"), anchor="start", size=14
    )
    d.arrow((234, 80), (322, 80))
    d.text(278, 62, ("dequantise", "反量化"), size=14)
    d.box(
        324,
        16,
        130,
        130,
        ("W in 16 bits,\nonly while the\nlayer computes", "16 比特的 W，\n只在该层\n计算时存在"),
        fill="none",
        size=14,
    )
    d.arrow((454, 96), (560, 96))
    d.box(354, 234, 120, 44, "A", fill=TRAINED, size=17)
    d.arrow((474, 256), (502, 256))
    d.box(504, 200, 44, 112, "B", fill=TRAINED, size=17)
    d.text(451, 330, ("32 bits, with gradients", "32 比特，有梯度"), size=15)
    d.arrow((548, 256), (576, 256), (576, 112))
    d.circle(576, 96, "+")
    d.arrow((590, 96), (624, 96))
    d.text(640, 96, "y", size=20)
    d.legend(20, 344)


def scaled(d: Drawing, x: float, y: float, name: str | tuple[str, str], vector: str, width: float = 84) -> float:
    """Draw a layer and the vector that scales its outputs, and return the right end."""
    d.box(x, y - 26, width, 52, name, size=15)
    d.arrow((x + width, y), (x + width + 18, y))
    d.circle(x + width + 33, y, "⊙")
    d.box(x + width + 22, y + 24, 22, 54, "", fill=TRAINED, radius=3)
    d.text(x + width + 54, y + 54, vector, anchor="start", size=16)
    return x + width + 47


def ia3(d: Drawing) -> None:
    """Three scaling vectors."""
    d.text(20, 150, "x", size=20)
    d.arrow((32, 150), (50, 150), (50, 40), (74, 40))
    d.arrow((50, 150), (74, 150))
    d.arrow((50, 150), (50, 260), (74, 260))
    d.box(76, 14, 84, 52, ("query", "查询"), size=15)
    end = scaled(d, 76, 150, ("key", "键"), "l_k")
    scaled(d, 76, 260, ("value", "值"), "l_v")
    d.arrow((160, 40), (292, 40))
    d.arrow((end, 150), (292, 150))
    d.arrow((end, 260), (292, 260))
    d.box(294, 14, 104, 278, ("attention", "注意力"), size=15)
    d.arrow((398, 150), (424, 150))
    d.box(426, 124, 84, 52, ("up", "升维"), size=15)
    d.arrow((510, 150), (528, 150))
    end = scaled(d, 530, 150, ("activation", "激活"), "l_ff", width=96)
    d.arrow((end, 150), (end + 18, 150))
    d.box(end + 20, 124, 96, 52, ("down", "降维"), size=15)
    d.arrow((end + 116, 150), (end + 142, 150))
    d.legend(20, 370)


MINI = 132.0
Mark = Callable[[Drawing, float, float], None]


def mini(d: Drawing, x: float, y: float, name: str | tuple[str, str], marks: Sequence[str]) -> None:
    """Draw a small model of three blocks, and mark its trained numbers.

    Args:
        d: drawing.
        x, y: left and top.
        name: name of the method.
        marks: what is trained.
    """
    bar, body = x + 26, MINI - 26
    everything = TRAINED if "all" in marks else FROZEN
    d.text(x + 13 + MINI / 2, y, name, size=15)
    d.box(bar, y + 18, body, 16, fill=TRAINED if "head" in marks else everything, radius=3)
    for block in range(3):
        top = y + 40 + 54 * block
        fill = TRAINED if "last" in marks and block == 0 else everything
        _mini_layer(d, bar, top, fill, marks, (40, 66))
        _mini_layer(d, bar, top + 27, fill, marks, (53,))
        for position in (0, 9) if "keys" in marks else ():
            d.box(x + position, top, 7, 22, fill=TRAINED, radius=2)
    d.box(bar, y + 202, body, 16, fill=everything, radius=3)
    for position in (0, 9) if "tokens" in marks else ():
        d.box(x + position, y + 202, 7, 16, fill=TRAINED, radius=2)
    if "network" in marks:
        d.box(x, y + 222, 44, 18, "MLP", fill=TRAINED, size=12, radius=3)


def _mini_layer(d: Drawing, x: float, y: float, fill: str, marks: Sequence[str], vectors: Sequence[float]) -> None:
    """Draw the attention or the feed-forward layer of a small model; `vectors` are the positions of trained vectors."""
    body = MINI - 26
    wide = body - (30 if "bottleneck" in marks else 0)
    d.box(x, y, wide, 22, fill=fill, radius=3)
    shapes: list[tuple[str, float, float, float, float]] = [
        ("factors", 30, 4, 5, 14),
        ("factors", 38, 8, 22, 5),
        ("magnitude", 68, 4, 6, 14),
        ("biases", 0, 18, body, 4),
        *(("vectors", position, 3, 5, 16) for position in vectors),
    ]
    for mark, left, top, width, height in shapes:
        if mark in marks:
            d.box(x + left, y + top, width, height, fill=TRAINED, radius=1)
    if "bottleneck" in marks:
        bow_tie(d, x + wide + 5, y + 11, 24, 22)
    for line in range(1, 7) if "codes" in marks else ():
        position = f"M{x + 15 * line:g} {y:g} V{y + 22:g}"
        d.parts.append(f'<path d="{position}" stroke="{LIGHT}" stroke-opacity="0.35"/>')


OVERVIEW: tuple[tuple[str | tuple[str, str], tuple[str, ...]], ...] = (
    (("prompt tuning", "提示微调"), ("tokens",)),
    ("P-tuning", ("tokens", "network")),
    (("prefix tuning", "前缀微调"), ("keys",)),
    ("P-tuning v2", ("keys", "head")),
    (("adapter", "适配器"), ("bottleneck",)),
    ("(IA)³", ("vectors",)),
    ("LoRA", ("factors",)),
    ("DoRA", ("factors", "magnitude")),
    ("QLoRA", ("factors", "codes")),
    ("BitFit", ("biases",)),
    (("selective", "部分微调"), ("last",)),
    (("full", "全量微调"), ("all",)),
)


def overview(d: Drawing) -> None:
    """All methods side by side."""
    for index, (name, marks) in enumerate(OVERVIEW):
        mini(d, 12 + (index % 4) * 176, 18 + (index // 4) * 272, name, marks)
    for row in range(3):
        top = 18 + row * 272
        for y, words in ((26, ("head", "输出头")), (120, ("blocks", "各层")), (210, ("embedding", "嵌入"))):
            d.text(702, top + y, words, anchor="start", size=14)
    d.legend(12, 836)


def others(d: Drawing) -> None:
    """BitFit, selective tuning and full fine-tuning."""
    for index, (name, marks) in enumerate(OVERVIEW[-3:]):
        mini(d, 12 + index * 190, 18, name, marks)
    for y, words in ((26, ("head", "输出头")), (120, ("blocks", "各层")), (210, ("embedding", "嵌入"))):
        d.text(548, 18 + y, words, anchor="start", size=14)
    d.legend(12, 262)


def hooks(d: Drawing) -> None:
    """The way of a batch through a model with virtual tokens."""
    rows = (
        (("labels, losses, generate, Trainer", "标签、损失、generate、Trainer"), "none", False),
        (("output head", "输出头"), FROZEN, False),
        (("hook: takes the columns out again", "钩子：再取出这些列"), "none", None),
        (("blocks 1 to L", "第 1 至 L 层"), FROZEN, True),
        (("embedding: hook looks up ids past its last row", "嵌入：钩子查出末行之后的 id"), FROZEN, True),
        (("hook: inserts ids, mask and positions", "钩子：插入 id、掩码和位置"), "none", None),
        (("input_ids of the caller", "调用者的 input_ids"), "none", False),
    )
    for index, (words, fill, has_prompt) in enumerate(rows):
        y = 14 + index * 58
        d.box(20, y, 400, 42, words, fill=fill, size=15)
        for column in range(3 + 5) if has_prompt is not None else ():
            is_virtual = column < 3
            x = 450 + 40 * column
            if has_prompt or not is_virtual:
                colour = TRAINED if is_virtual else FROZEN
                d.box(x, y + 6, 32, 30, f"v{column + 1}" if is_virtual else f"t{column - 2}", fill=colour, size=13)
        if index:
            d.arrow((220, y - 2), (220, y - 14))
    d.text(450, 14 + 2 * 58 + 21, ("t: tokens of the text", "t：文本的 token"), anchor="start", size=15)
    d.text(450, 14 + 5 * 58 + 21, ("v: virtual tokens", "v：虚拟标记"), anchor="start", size=15)


def packing(d: Drawing) -> None:
    """A padded batch, and the same examples packed with a shared prompt."""
    lengths, cell = (3, 6, 4), 34.0
    d.text(20, 20, ("padded batch: 36 columns", "填充的批次：36 列"), anchor="start")
    for row, length in enumerate(lengths):
        y = 38 + row * 40
        padding = max(lengths) - length
        for column in range(6 + max(lengths)):
            x = 20 + column * cell
            if column < padding:
                d.box(x, y, cell - 5, 30, "", fill="none", radius=3)
            elif column < padding + 6:
                d.box(x, y, cell - 5, 30, f"v{column - padding + 1}", fill=TRAINED, size=12, radius=3)
            else:
                d.box(x, y, cell - 5, 30, "abc"[row] + str(column - padding - 5), size=12, radius=3)
    d.text(460, 38 + 55, ("empty: padding", "空白：填充"), anchor="start", size=15)
    d.text(20, 186, ("packed, the prompt once: 19 columns", "打包，提示只算一次：19 列"), anchor="start")
    names = [f"v{index + 1}" for index in range(6)]
    names += ["abc"[row] + str(index + 1) for row, length in enumerate(lengths) for index in range(length)]
    for column, name in enumerate(names):
        d.box(
            20 + column * cell, 204, cell - 5, 30, name, fill=TRAINED if name[0] == "v" else FROZEN, size=12, radius=3
        )
    d.text(
        20,
        262,
        ("attention: each of a, b, c reads v and itself", "注意力：a、b、c 各自只读 v 和自己"),
        anchor="start",
        size=15,
    )
    d.legend(20, 296)


PICTURES: dict[str, tuple[Callable[[Drawing], None], int, int, tuple[str, str]]] = {
    "methods_overview": (overview, 800, 860, ("Trained numbers of each method", "各方法训练的参数所在的位置")),
    "method_prompt_tuning": (prompt_tuning, 872, 404, ("Prompt tuning", "提示微调")),
    "method_p_tuning": (p_tuning, 872, 462, ("P-tuning", "P-Tuning")),
    "method_prefix_tuning": (prefix_tuning, 872, 404, ("Prefix tuning", "前缀微调")),
    "method_p_tuning_v2": (p_tuning_v2, 872, 404, ("P-tuning v2", "P-Tuning v2")),
    "method_adapter": (adapter, 800, 340, ("Bottleneck adapter", "瓶颈适配器")),
    "method_lora": (lora, 790, 386, ("LoRA", "低秩适应（LoRA）")),
    "method_dora": (dora, 790, 256, ("DoRA", "DoRA")),
    "method_qlora": (qlora, 680, 364, ("QLoRA", "QLoRA")),
    "method_ia3": (ia3, 840, 390, ("(IA)³", "(IA)³")),
    "how_hooks": (hooks, 790, 424, ("Virtual tokens inside a model", "模型内部的虚拟标记")),
    "how_packing": (packing, 690, 316, ("Padded and packed batches", "填充与打包的批次")),
    "method_others": (others, 640, 284, ("BitFit, selective and full tuning", "BitFit、部分微调与全量微调")),
}
"""Function, size and title of each picture."""


def pictures() -> dict[Path, str]:
    """Return the content of each file."""
    found = {}
    for name, (draw, width, height, title) in PICTURES.items():
        for is_chinese in (False, True):
            drawing = Drawing(width, height, title, is_chinese=is_chinese)
            draw(drawing)
            found[FOLDER / f"{name}{'.zh' if is_chinese else ''}.svg"] = drawing.svg()
    return found


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for file, content in pictures().items():
        file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
