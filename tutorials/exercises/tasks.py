"""Notebook 01: what the model's words mean. Text -> a plain value, or None where the answer cannot
be read."""

from ..exercise import exercise

TASKS = "crab_mini.tasks.base:TASKS"  # the one line that knows where the package keeps its tasks
AVE, OTHER = (
    "<event> dog </event> <range> 2,6 </range>",
    "<event> bell </event> <range> 0,10 </range>",
)


@exercise("01", lives=f"{TASKS}.ave.parse")
def parse_ave(text):
    """AVE's answer: `.. <event> dog </event> .. <range> 2,6 </range> ..` -> ("dog", 2, 6), seconds
    as whole numbers.

    None where a tag is missing or the range ends before it begins. Blanks inside the tags do not
    count.
    """
    raise NotImplementedError


@parse_ave.requires(
    "a plain answer is read", "re.search with one group for the name and one for each number"
)
def _(trial):
    trial.equal(trial.call("<event>dog</event> <range>2,6</range>"), ("dog", 2, 6))
    trial.equal(trial.call("The event: <event>dog</event>, at <range>2,6</range>."), ("dog", 2, 6))


@parse_ave.requires("blanks inside the tags do not count", r"\s* on both sides, or strip()")
def _(trial):
    trial.equal(trial.call(AVE), ("dog", 2, 6))
    trial.equal(trial.call("<event>  dog</event> <range> 2 , 6 </range>"), ("dog", 2, 6))


@parse_ave.requires("numbers may have two digits", r"\d is one digit, \d+ is one or more")
def _(trial):
    trial.equal(trial.call(OTHER), ("bell", 0, 10))


@parse_ave.requires(
    "an answer that cannot be read is None", "re.search gives None where nothing fits"
)
def _(trial):
    for text in (
        "",
        "dog 2,6",
        "<event> dog </event>",
        "<range> 2,6 </range>",
        "<event> dog </event> <range> 2 </range>",
    ):
        trial.equal(trial.call(text), None)


@parse_ave.requires("a range that ends before it begins is None", "compare the two numbers")
def _(trial):
    trial.equal(trial.call("<event> dog </event> <range> 6,2 </range>"), None)


@parse_ave.requires(
    "names of several words are kept whole", "a name is whatever stands between the tags"
)
def _(trial):
    trial.equal(
        trial.call("<event> emergency-car </event> <range> 2,6 </range>"), ("emergency-car", 2, 6)
    )
    trial.equal(
        trial.call("<event> lawn mower </event> <range> 2,6 </range>"), ("lawn mower", 2, 6)
    )


@parse_ave.requires("tags that come twice count once", "a greedy .+ runs to the last closing tag")
def _(trial):
    trial.equal(trial.call(f"{AVE} {OTHER}"), ("dog", 2, 6))


@exercise("01", lives=f"{TASKS}.avvp.parse", points=2)
def parse_avvp(text):
    """AVVP's answer: every `<audio_event> dog,(3 6),(8 9) </audio_event>` and every `<visual_event>
    .. </visual_event>`.

    -> {"audio": [("dog", 3, 6), ("dog", 8, 9)], "visual": [..]}, in the order of the text. A text
    without any tag is None, unless it says "no audio event" or "no visual event": then the lists
    are empty.
    """
    raise NotImplementedError


@parse_avvp.requires(
    "both senses are read, each into its own list", "the tag's name says which list"
)
def _(trial):
    text = "<audio_event> dog,(3 6) </audio_event>"
    trial.equal(trial.call(text), {"audio": [("dog", 3, 6)], "visual": []})
    trial.equal(
        trial.call(f"<visual_event> bell,(0 2) </visual_event> {text}"),
        {"audio": [("dog", 3, 6)], "visual": [("bell", 0, 2)]},
    )


@parse_avvp.requires(
    "all tags of a text are read", "re.search finds the first only; re.findall finds all"
)
def _(trial):
    text = "<audio_event> dog,(3 6) </audio_event> <audio_event> bell,(1 2) </audio_event>"
    trial.equal(trial.call(text), {"audio": [("dog", 3, 6), ("bell", 1, 2)], "visual": []})


@parse_avvp.requires("all spans of a tag are read", "one name may be heard twice")
def _(trial):
    trial.equal(
        trial.call("<visual_event> dog,(3 6),(8 9) </visual_event>"),
        {"audio": [], "visual": [("dog", 3, 6), ("dog", 8, 9)]},
    )


@parse_avvp.requires("numbers may have two digits", r"\d is one digit, \d+ is one or more")
def _(trial):
    trial.equal(
        trial.call("<audio_event> dog,(0 10) </audio_event>"),
        {"audio": [("dog", 0, 10)], "visual": []},
    )


@parse_avvp.requires(
    "silence that is said is an empty answer, not an unreadable one", "look for `no audio event`"
)
def _(trial):
    trial.equal(trial.call("no audio event no visual event"), {"audio": [], "visual": []})


@parse_avvp.requires(
    "an answer that cannot be read is None", "no tag, and nothing said about there being none"
)
def _(trial):
    trial.equal(trial.call("the dog barks"), None)
    trial.equal(trial.call(""), None)


@exercise("01", lives=f"{TASKS}.arig.parse")
def parse_arig(text):
    """ARIG's answer: the LAST two corners `(x,y)` of the text -> (x0, y0, x1, y1), whole pixels of
    a 224 x 224 frame.

    None for fewer than two corners, or where the second is not below and to the right of the first.
    """
    raise NotImplementedError


@parse_arig.requires("a plain answer is read", r"two corners are two groups of \((\d+),(\d+)\)")
def _(trial):
    trial.equal(trial.call("(7,14),(91,98)"), (7, 14, 91, 98))


@parse_arig.requires("numbers may have three digits", r"\d+ is one digit or more")
def _(trial):
    trial.equal(trial.call("(7,14),(91,105)"), (7, 14, 91, 105))


@parse_arig.requires("blanks inside the brackets do not count", r"\s* around the numbers")
def _(trial):
    trial.equal(trial.call("( 7 , 14 ), (91, 98)"), (7, 14, 91, 98))


@parse_arig.requires("the last two corners count", "reasoning may name other places first")
def _(trial):
    trial.equal(trial.call("(1,2) (7,14),(91,105)"), (7, 14, 91, 105))


@parse_arig.requires("fewer than two corners are None", "count what re.findall found")
def _(trial):
    trial.equal(trial.call("(7,14)"), None)
    trial.equal(trial.call("nothing"), None)


@parse_arig.requires("a box without area is None", "x0 < x1 and y0 < y1")
def _(trial):
    trial.equal(trial.call("(91,14),(7,105)"), None)
    trial.equal(trial.call("(7,105),(91,14)"), None)
    trial.equal(trial.call("(7,14),(7,105)"), None)
