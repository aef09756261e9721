# pyright: basic
"""Looking at held-out rows while training: the loss on them, and what the model answers, scored and reported."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from shared.contracts.training.llm import LlmSpec
from trainer.llm.predict import Predictor
from trainer.llm.scores import corpus_figures, score
from trainer.report.events import Reporter
from trainer.train.trainee import Trainee

_SHOWN_CHARS = 8000


@dataclass(frozen=True)
class Validation:
    """Called between steps; leaves every source of chance and the average untouched."""

    trainee: Trainee
    spec: LlmSpec
    evaluate: Callable[[], dict[str, float]]
    predictor: Predictor | None
    reporter: Reporter

    def look(self) -> None:
        """One `prediction` line per sample, and one `metrics` line with what the held-out rows say."""
        model = self.trainee.part.model
        model.eval()
        self.reporter.phase("validating", f"step {self.trainee.step}")
        with torch.no_grad():
            figures = self.evaluate()
        if self.predictor is not None:
            figures.update(self._predict(self.predictor))
        if figures:
            self.reporter.metrics(
                step=self.trainee.step,
                total_steps=self.trainee.total_steps,
                epoch=self.trainee.task.epoch,
                loss=self.trainee.last_loss,
                **{name: round(value, 6) for name, value in figures.items()},
            )
        self.reporter.phase("training")

    def _predict(self, predictor: Predictor) -> dict[str, float]:
        answers = predictor.answers()
        for number, answer in enumerate(answers):
            reference = predictor.references[number]
            scored = score(answer, reference)
            self.reporter.emit(
                "prediction",
                epoch=self.trainee.task.epoch,
                step=self.trainee.step,
                sample_id=f"sample_{number + 1}",
                prompt=predictor.prompts[number][:_SHOWN_CHARS],
                generated=answer[:_SHOWN_CHARS],
                reference=reference[:_SHOWN_CHARS],
                bleu_score=round(scored.bleu, 4),
                rouge_score=round(scored.rouge_l, 4),
            )
        return corpus_figures(answers, predictor.references)
