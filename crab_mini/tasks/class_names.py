"""Class names of segmentation maps, and which class an annotation's words mean.

Published annotations say "lawn mower" where AVSBench's palette says `mower`, and `missile-rocket`
comes with blanks: so a name means a class if it ends with the class's words.
"""

AVSBENCH_CLASSES = tuple("""
background accordion airplane axe baby bassoon bell bird boat boy bus car cat cello clarinet clipper
clock dog donkey drum duck elephant emergency-car erhu flute frying-food girl goose guitar gun
guzheng hair-dryer handpan harmonica harp helicopter hen horse keyboard leopard lion man marimba
missile-rocket motorcycle mower parrot piano pig pipa saw saxophone sheep sitar sorna squirrel tabla
tank tiger tractor train trombone truck trumpet tuba ukulele utv vacuum-cleaner violin wolf woman
""".split())


def words_of(name: str) -> list[str]:
    """A name without case and hyphens, word by word."""
    return name.lower().replace("-", " ").replace("_", " ").replace(",", " ").split()


def class_meant(text: str, classes: tuple[str, ...]) -> int | None:
    """The number of the class whose words end the text; None if there is none.

    The longest name wins. Class 0, the background, is never meant.
    """
    words, fits = words_of(text), []
    for number, name in enumerate(classes):
        ending = words[-len(words_of(name)):]
        if number and words_of(name) == ending:
            fits.append(number)
    return max(fits, key=lambda k: len(words_of(classes[k])), default=None)


def class_number(name: str, classes: tuple[str, ...]) -> int:
    """`class_meant` for a label; ValueError in one line if the list has no such class."""
    number = class_meant(name, classes)
    if number is None:
        raise ValueError(f"'{name.strip()}' is none of the {len(classes)} class names")
    return number
