"""How a bundle is made: labelled volumes in, a bundle that `labeler` can verify and load out.

::

    corpus    volumes and what each slice shows -> stacks of planes, split by subject
    augment   image augmentation, batched in torch
    captions  language augmentation: sentences and what each of them claims
    loss      contrastive objectives with many positives, balanced over labels and both directions
    train     one readable page
    evaluate  the served path, measured on held-out subjects
    export    checkpoint -> bundle with manifest and model card

Imports `labeler` for everything that serving does too: planes, pictures, prompts, model, scores.
"""
