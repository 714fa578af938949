"""Scores of a site, one file per idea; higher is always better.

==========================  ====================================================================================
``learnable_share``         default: part of fine-tuning's update (without its mean) learnable from half the prompts
``learnable_share_with_mean``  the same with the mean update over prompts, which one shift common to all can make
``in_sample_share``         the same judged on the prompts it was fitted on: reach rather than learning
``own_direction``           cosine of the site's own regression on the loss residual with the held-out residual
``predicted_loss``          loss drop per held-out prompt of that regression, to second order
``predicted_loss_bounded``  the same of the edit shortened until it is at most half as long as what it is added to
``alignment``               cosine of the site's kernel with fine-tuning's
``gradient_capture``        held-out loss decrease of a unit gradient step here, over fine-tuning's
``gradient_norm``           norm of the loss gradient with respect to the edit
``activation_norm``         root mean square of what the site reads
``depth`` and others        where the site is: earlier is better, nearest the middle, last, seeded random
==========================  ====================================================================================
"""

from steerscope.analysis.scores.by_kernel import KERNEL_SCORES, kernel_scores
from steerscope.analysis.scores.by_place import PLACE_SCORES, place_scores

DEFAULT_SCORE = "learnable_share"
SCORES = (*KERNEL_SCORES, *PLACE_SCORES)

__all__ = ["DEFAULT_SCORE", "KERNEL_SCORES", "PLACE_SCORES", "SCORES", "kernel_scores", "place_scores"]
