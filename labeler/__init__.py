"""What a picture shows: CT and MR planes in, body stations and organs out.

The way of a series through this package::

    slices      files -> oriented planes, each skipped image with its reason
    preprocess  planes -> pictures: ONE prepare() for training and serving
    model       pictures and prompts -> CLIP embeddings
    score       embeddings -> a probability per slice and label
    aggregate   slices -> a consistent answer for the series
    label       all of the above behind one object, `Labeler`

`dicom` reads files, `sandbox` does so in child processes (`packed` is how planes come back).
`vocabulary` and `prompts` hold the words, `bundle` the trained parts with their hashes, `result` the answer.
Nothing here knows a DICOM network, a queue or how a model is trained.
"""
