"""What a user can ask for: the only declaration of every option. Nothing here imports torch."""

from normfold.job.job import COMMANDS, GROUPS, Job, all_options
from normfold.job.option import Option, option, options_of
from normfold.job.output import EngineOptions, Export, Request
from normfold.job.policy import Policy
from normfold.job.source import MODEL_HELP, Source
from normfold.job.steps import Cast, Quantize, Recalibrate, Rewrite, Step, Train

__all__ = [
    "COMMANDS",
    "GROUPS",
    "MODEL_HELP",
    "Cast",
    "EngineOptions",
    "Export",
    "Job",
    "Option",
    "Policy",
    "Quantize",
    "Recalibrate",
    "Request",
    "Rewrite",
    "Source",
    "Step",
    "Train",
    "all_options",
    "option",
    "options_of",
]
