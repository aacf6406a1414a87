"""Prompts to draw for a reward: reading a file of them, and writing many that ask for texts in images.

    prompts.txt                          # one prompt per line
    prompts.jsonl                        # {"prompt": "a sign that says \\"OPEN\\"", "kind": "word"} per line

The paper's last stage has 20K prompts that center on texts to render; it tells neither their words nor where they come
from. Those made here are ours: things that bear writing, where they stand, how they are lettered, and the writing, from
single letters to sentences. They are a function of the seed; the first n are the same however many are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from openlance.config.values import lines_of, one_of, read_text, whole
from openlance.data.census import Census
from openlance.data.front import Fit
from openlance.data.source import Row, Sample, shuffled
from openlance.errors import UserError
from openlance.sequence.tasks import spec_of

BLOCK = 64  # prompts of a part
Rng = np.random.Generator
MOST_REPEATS = 10_000  # draws in a row that bring nothing new: the words are used up


@dataclass(frozen=True)
class Prompt:
    """What to draw; by its `kind` rewards are reported, too."""

    prompt: str
    kind: str = ""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read the prompts of a UTF-8 file: JSON with `prompt`, and `kind` where it has one, per line of a .jsonl; of any
    other file each line is one. Blank lines at its end are left out.

    Raises:
        UserError: If it cannot be read, or a line is blank or damaged; it names the line.
    """
    text = read_text(path, ", one prompt per line").rstrip()
    if not text:
        raise UserError(f"{path} is empty: write one prompt per line")
    as_json = Path(path).suffix.lower() in (".jsonl", ".ndjson")
    found = list[Prompt]()
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            raise UserError(f"line {number} of {path} is empty: write a prompt there or delete the line")
        found.append(_of_json(line, f"line {number} of {path}") if as_json else Prompt(line.strip()))
    return found


def _of_json(line: str, where: str) -> Prompt:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where} is no JSON ({error}): write {{"prompt": "..."}}') from None
    prompt = data.get("prompt") if isinstance(data, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{where} has no prompt: write {{"prompt": "..."}}')
    return Prompt(prompt.strip(), str(data.get("kind") or ""))


def text_prompts(count: int, seed: int = 0, language: str = "en") -> list[Prompt]:
    """Make prompts that ask for texts in images, no two alike; each text stands between straight quotes.

    Args:
        count: How many.
        seed: Other seeds, other prompts.
        language: en, zh, or both in turn (en+zh). English ones ask for English texts, Chinese ones for Chinese.

    Raises:
        UserError: If there are not so many.
    """
    one_of("language", language, ("en", "zh", "en+zh"))
    makers: list[Callable[[Rng], Prompt]] = [{"en": _english, "zh": _chinese}[name] for name in language.split("+")]
    made = list(islice(_new(makers, np.random.default_rng(whole("seed", seed, 0))), whole("count", count)))
    if len(made) < count:
        raise UserError(f"there are {len(made)} prompts of language {language} and seed {seed}: ask for so many")
    return made


def _new(makers: Sequence[Callable[[Rng], Prompt]], rng: Rng) -> Iterator[Prompt]:
    seen, repeats = set[str](), 0
    while repeats < MOST_REPEATS:
        one = makers[len(seen) % len(makers)](rng)
        repeats = repeats + 1 if one.prompt in seen else 0
        if not repeats:
            seen.add(one.prompt)
            yield one


def _pick(rng: Rng, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _words(said: str) -> tuple[str, ...]:
    return tuple(said.split())


def _phrases(said: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in said.split(";"))


THINGS = _phrases(
    "a shop sign; a street sign; a neon sign; a wooden signpost; a road sign; a billboard; a poster; a movie poster; "
    "a concert poster; a book cover; a magazine cover; the spine of an old book; a newspaper page; a chalkboard; a "
    "whiteboard; a menu board; a paper note; a sticky note; a postcard; a greeting card; a wedding invitation; a "
    "birthday cake; a cookie with icing; a coffee mug; a paper cup; a T-shirt; a baseball cap; a tote bag; a football "
    "scarf; a wine label; a glass bottle; a tin can; a cereal box; a cardboard box; a shipping container; a delivery "
    "van; a bus; a train carriage; the hull of a ship; a hot air balloon; a racing car; a spaceship; a banner; a "
    "flag; a protest placard; graffiti on a brick wall; a mural; a bronze plaque; a stone tablet; a door plate; a "
    "name tag; a luggage tag; a museum label; a computer screen; a phone screen; a departure board; a scoreboard; a "
    "robot; a lighthouse; sand on a beach; letters of snow; a sticker on a laptop; a stamp; a ticket"
)
PLACES = _phrases(
    "at night; in the rain; on a sunny day; in thick fog; in the snow; at sunset; in an empty street; on a crowded "
    "square; beside a canal; in a small village; in a harbour; in front of mountains; in a forest; in a desert; on a "
    "rooftop; in a cosy kitchen; in a bright studio; on a wooden table; in a library; in a classroom; in a workshop; "
    "at a fair; at an airport; in a railway station; in a museum; under a bridge; on a stage; by a window; in a "
    "garden; in space"
)
LETTERING = _phrases(
    "in bold letters; in thin letters; in red letters; in white letters; in golden letters; in blue paint; in chalk; "
    "in neon light; in neat handwriting; in a brush script; in old-fashioned type; in a round font; in pixel letters; "
    "in carved letters; in icing; in stitches; in large print; in small print; in two colours; in glowing letters"
)
STYLES = _phrases(
    "a photo of; a close-up of; a watercolour of; a pencil drawing of; an oil painting of; a flat illustration of; "
    "a 3D render of; a comic panel with; a vintage photo of; a minimalist picture of"
)
SAYING = _phrases("that says; with the text; with the words; that reads; reading; with the inscription; saying")
BETWEEN = ("next to", "above", "behind", "and")
ADJECTIVES = _words(
    "amber ancient bitter bold brave bright broken calm clever cold copper crooked curious daily dark distant dusty "
    "eager early electric empty endless fancy fast final first fresh frozen gentle giant golden grand green happy "
    "hidden hollow honest hot hungry iron jolly late lazy little local lonely loud lucky magic mellow merry mighty "
    "modern narrow new noble northern old open orange patient perfect plain polite proud purple quick quiet rapid "
    "rare royal rusty secret sharp silent silver simple sleepy slow smart smooth solar sour southern spicy steady "
    "strange sunny sweet tall tiny urban velvet warm western wild wise wooden young"
)
NOUNS = _words(
    "acorn anchor apple arrow bakery balloon barn basket beach bear bell bicycle bird boat bottle bread breeze bridge "
    "bucket butter cabin cactus camera candle canyon carpet castle cat cherry circus city clock cloud coffee comet "
    "cookie copper corner cotton cricket crown dance desert diamond dolphin dragon dream eagle engine falcon farm "
    "feather ferry fiddle fire flower forest fountain fox galaxy garden ghost ginger glacier grape guitar hammer "
    "harbor hazel honey horizon horse hotel island ivory jacket jungle kettle kite kitten ladder lantern lemon "
    "library lighthouse lion lizard lobster magnet mango maple market marble meadow melon mirror monkey moon morning "
    "mountain museum needle nest night noodle ocean olive orbit orchard otter owl paper parade parrot pencil pepper "
    "piano picnic pillow pilot planet pocket pond poppy puzzle quartz rabbit radio rainbow raven river robot rocket "
    "saddle sailor salmon scissors shadow shell signal skate soup sparrow spider spoon spring star station stone "
    "storm summer sunset tailor tea temple theatre thunder tiger tomato tower train tulip tunnel turtle valley violin "
    "volcano wagon walnut water whale willow window winter wizard wolf yard zebra"
)
VERBS = _words(
    "bring build carry catch chase clean cook draw fix follow guard keep lift mend open paint read save find wash"
)
COUNTED = _phrases("ONLY {}; {} LEFT; OVER {} SOLD; {} YEARS; ROOM {}; TRACK {}; BUS {}; {} KM; LEVEL {}; NO. {}")
SENTENCES = _phrases(
    "the {a} {n} is {b}; {v} the {a} {n}; please {v} the {n}; never {v} a {a} {n}; every {n} needs a {m}; "
    "{n} and {m} for {a} people; we {v} the {n} by the {m}; welcome to the {a} {n}; where is my {a} {n}?; "
    "do not {v} the {n}!; the {n} of the {a} {m}; all you need is a {a} {n}; today: {a} {n} with {m}; "
    "keep calm and {v} the {n}; a {n} is not a {m}; thank you for the {a} {n}"
)


def _cased(text: str, rng: Rng) -> str:
    """A text as signs have it: large, with capitals in front, as a sentence, or small."""
    return (text.upper(), text.title(), text[:1].upper() + text[1:], text)[int(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1)))]


def _letters(rng: Rng, count: int) -> str:
    return "".join(chr(ord("A") + int(rng.integers(26))) for _ in range(count))


def _word(rng: Rng) -> str:
    return _cased(_pick(rng, NOUNS + ADJECTIVES), rng)


def _few_words(rng: Rng) -> str:
    form = _pick(rng, ("{a} {n}", "{a} {n}", "the {a} {n}", "{n} & {m}", "{v} the {n}", "{a} {n} {m}"))
    return _cased(_filled(form, rng), rng)


def _sentence(rng: Rng) -> str:
    text = _filled(_pick(rng, SENTENCES), rng)
    return text.upper() if rng.random() < 0.3 else text[:1].upper() + text[1:]


def _number(rng: Rng) -> str:
    number, form = int(rng.integers(1, 10 ** int(rng.integers(1, 5)))), int(rng.integers(6))
    hour, minute, cents = int(rng.integers(24)), int(rng.integers(60)), int(rng.choice((0, 25, 49, 50, 95, 99)))
    forms = (str(number), f"{hour}:{minute:02}", f"${number % 200}.{cents:02}", f"{number % 100}% OFF")
    return (*forms, str(1500 + number % 600), _pick(rng, COUNTED).format(number))[form]


def _code(rng: Rng) -> str:
    first, second, digits = _letters(rng, 1 + int(rng.integers(3))), _letters(rng, 2), int(rng.integers(1, 10_000))
    return _pick(rng, (f"{first}{digits}", f"{first}-{digits}", f"{first} {digits} {second}", first))


def _filled(form: str, rng: Rng) -> str:
    a, b, n, m, v = (_pick(rng, words) for words in (ADJECTIVES, ADJECTIVES, NOUNS, NOUNS, VERBS))
    return form.format(a=a, b=b, n=n, m=m, v=v)


# Kinds of texts and their shares. Two texts are asked for on two things.
KINDS: dict[str, tuple[float, Callable[[Rng], str]]] = {
    "word": (0.25, _word), "words": (0.3, _few_words), "sentence": (0.15, _sentence), "number": (0.1, _number),
    "code": (0.1, _code), "two": (0.1, _few_words),
}  # fmt: skip


def _kind(rng: Rng) -> str:
    return str(rng.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))


def _english(rng: Rng) -> Prompt:
    kind = _kind(rng)
    write = KINDS[kind][1]
    said = f'{_pick(rng, THINGS)} {_pick(rng, SAYING)} "{write(rng)}"'
    if kind == "two":
        said += f' {_pick(rng, BETWEEN)} {_pick(rng, THINGS)} {_pick(rng, SAYING)} "{_word(rng)}"'
    elif rng.random() < 0.4:
        said += f" {_pick(rng, LETTERING)}"
    if rng.random() < 0.5:
        said += f", {_pick(rng, PLACES)}" if rng.random() < 0.7 else f" {_pick(rng, PLACES)}"
    said = f"{_pick(rng, STYLES)} {said}" if rng.random() < 0.35 else said
    return Prompt(said if rng.random() < 0.5 else f"{said[:1].upper()}{said[1:]}.", kind)


THINGS_ZH = _words(
    "店铺招牌 路牌 霓虹灯牌 木牌 海报 电影海报 书的封面 报纸 黑板 白板 便签 明信片 生日蛋糕 咖啡杯 "
    "T恤 酒瓶标签 纸箱 公交车 横幅 砖墙 石碑 门牌 手机屏幕 灯笼 红包 茶叶罐"
)
PLACES_ZH = _words(
    "夜晚的街道上 雨中 雪地里 黄昏时分 小巷里 海边 山脚下 木桌上 图书馆里 教室里 车站里 花园里 舞台上 窗边"
)
LETTERING_ZH = _words("红色 白色 金色 蓝色 黑色 发光的 手写的 毛笔的 粗体的")
STYLES_ZH = _words("一张照片： 一幅水彩画： 一幅油画： 一张特写： 一幅插画：")
BEFORE_ZH = _words("新 老 大 小 红 白 青 金 香 甜 春 夏 秋 冬 明 清 长 平 东 西 南 北")
AFTER_ZH = _words(
    "茶馆 书店 面馆 花店 车站 广场 医院 学校 公园 酒家 市场 银行 码头 剧院 咖啡 月饼 豆腐 山河 海风 星空 灯火 故事"
)
SENTENCES_ZH = _words("欢迎光临{} 请勿靠近{} 今日特价{} {}由此去 我爱{} {}万岁 小心{} {}欢迎您 禁止{}停车 祝你{}快乐")


def _chinese(rng: Rng) -> Prompt:
    text = _pick(rng, BEFORE_ZH) + _pick(rng, AFTER_ZH)
    kind = "zh sentence" if rng.random() < 0.35 else "zh word"
    text = _pick(rng, SENTENCES_ZH).format(text) if kind == "zh sentence" else text
    place = _pick(rng, PLACES_ZH) if rng.random() < 0.6 else ""
    color = f"用{_pick(rng, LETTERING_ZH)}字" if rng.random() < 0.5 else ""
    style = _pick(rng, STYLES_ZH) if rng.random() < 0.4 else ""
    return Prompt(f'{style}{place}一个{_pick(rng, THINGS_ZH)}，上面{color}写着"{text}"', kind)


@dataclass(frozen=True)
class PromptSource:
    """A file of prompts as a source of requests: samples whose targets are empty, for results that a reward judges.

    Args:
        path: Of the file.
        task: What is drawn, from words alone.

    Raises:
        UserError: If the task reads or writes anything else, or the file cannot be read.
    """

    path: Path
    task: str
    light = True

    def __post_init__(self) -> None:
        spec = spec_of(self.task)
        if spec.reads or spec.makes == "text":
            raise UserError(f"{self.path} holds prompts alone, and {self.task} takes more: give samples of it")
        if not self.prompts:
            raise UserError(f"{self.path} is empty: write a prompt on each line")

    @cached_property
    def prompts(self) -> list[Prompt]:
        return read_prompts(self.path)

    @property
    def census(self) -> Census:
        return Census(seen=len(self.prompts), used=len(self.prompts))

    def parts(self, epoch: int, rng: Rng | None) -> Sequence[list[int]]:
        order = shuffled(range(len(self.prompts)), rng)
        return [order[first : first + BLOCK] for first in range(0, len(order), BLOCK)]

    def rows(self, part: list[int]) -> list[Row]:
        return [Row(f"{self.path}, prompt {n + 1}", self.prompts[n]) for n in part]

    def stamp(self, part: list[int]) -> str:
        return "\n".join(self.prompts[n].prompt for n in part)

    def sample(self, row: Row, fit: Fit, rng: Rng) -> Sample:
        spec = spec_of(self.task)
        side = fit.front.transform.bases[spec.makes][0]
        frames = 1 if spec.makes == "image" else min(fit.front.num_frames, fit.max_frames)
        request = fit.front.request(spec, row.values.prompt, asked=(frames, side, side))
        return Sample(request, row.place, kind=row.values.kind)

    def __str__(self) -> str:
        return str(self.path)


def holds_prompts(said: object, alone: bool = False) -> bool:
    """Tell if a path of data is a file of prompts. alone: a table that has other columns is none."""
    path = Path(said) if isinstance(said, (str, Path)) else None
    if path is None or path.suffix.lower() not in (".txt", ".jsonl", ".ndjson") or not path.is_file():
        return False
    first = next(iter(lines_of(read_text(path, ", one prompt per line"))), "") if alone else ""
    if not first.startswith("{"):
        return True
    try:
        return set(json.loads(first)) <= {"prompt", "kind"}
    except ValueError:
        return True  # reading it says what is wrong
