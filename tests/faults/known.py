"""Cases that are known to fail: seed -> why. A case in this list that passes is a failure, too."""

LONG = "a path of thousands of characters stands in the line as a whole, and twice"
PUBLISHED = "the readers of published weights"

KNOWN: dict[int, str] = {
    174: LONG, 225: LONG, 590: LONG, 744: LONG,
    493: "eval.py takes a clips.json that is a link to itself for one that is not there", 593: "as 493", 739: "as 493",
    393: "the same for a folder of that name", 766: "as 393",
    654: "--task with a control character is printed as it is",
    667: f"{PUBLISHED}: a sparse tensor",
    194: f"{PUBLISHED}: a section of config.json that is a number",
    205: f"{PUBLISHED}: an empty sentencepiece model",
    278: f"{PUBLISHED}: a shard's name with control characters is printed as it is",
    386: f"{PUBLISHED}: a value of thousands of characters is printed as a whole",
    513: f"{PUBLISHED}: torch's warning about an unknown pickle protocol",
    532: f"{PUBLISHED}: config.json nested too deeply",
}
