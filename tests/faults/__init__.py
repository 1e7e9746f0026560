"""Corrupted inputs, kills at every write, full disks and broken networks: what the program does then.

    child.py      runs programs in a forked child with limits on time and memory
    good.py       the good inputs that are corrupted, made once
    mutate.py     corruptions of bytes, of JSON and of places on the disk
    data.py       cases of data sets: media, annotations, class names, the world's masters
    models.py     cases of models: crab.pt, stage files, published weights
    own.py        cases of the user's own files and words for eval.py
    cases.py      seed -> one case, and the judge of its outcome
    known.py      cases that are known to fail, with the reason
    kill.py       a process that dies at its n-th write; scenes.py: the runs that are killed
    fuzz.py       `python -m tests.faults.fuzz`: one seed again, or a search that goes on for long

An outcome is right if the input is refused (one line with file, field and reason; exit status 2, of
`check` 1), or if it is accepted with the right result. Everything else is a failure: a traceback, a
hang, too much memory, several lines, or a result that differs although nothing was said.
"""
