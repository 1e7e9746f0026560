"""The audio-visual world: scenes drawn from a seed, rendered, and written in the AV-UIE layout.

    scene       what a clip is: things, places, times, loudness
    render      scene -> frames, masks, waveform; from sprites, backgrounds and sounds (dials,
                synthesis), or from a bank of real pictures and recordings (bank, real_media)
    view        scene -> which things are seen and heard at each second, in words
    annotate    view -> annotation rows of eight tasks; questions: those of the ninth
    script      view -> what an LLM reads in place of encoder outputs while it learns from text
    write       all of it -> a data set on disk; clips: what pre-training reads back from it
"""
