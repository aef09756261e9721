# pyright: basic
"""How near an answer is to what people wrote: BLEU, ROUGE-L, chrF and exact matches, all from 0 to 1."""

import re
from dataclasses import dataclass
from typing import Any

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])[^\W_])+")


class _Words:
    """Words of any script; the scorer's own tokenizer knows a to z only."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words; each CJK character is one."""
        return _WORD.findall(text.lower())


_rouge: Any = RougeScorer(["rougeL"], tokenizer=_Words())


@dataclass(frozen=True)
class Score:
    """One answer against its reference."""

    bleu: float
    rouge_l: float
    exact: bool


def score(answer: str, reference: str) -> Score:
    """Sentence BLEU with effective order, the F measure of ROUGE-L, and equality apart from outer white space."""
    bleu = sacrebleu.sentence_bleu(answer, [reference]).score / 100
    rouge = _rouge.score(reference, answer)["rougeL"].fmeasure
    # BLEU of a perfect answer is 100.00000000000004 in floating point.
    return Score(min(1.0, bleu), rouge, answer.strip() == reference.strip())


def corpus_figures(answers: list[str], references: list[str]) -> dict[str, float]:
    """All answers together, as figures of a metrics line."""
    scores = [score(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    return {
        "eval_bleu": min(1.0, sacrebleu.corpus_bleu(answers, [references]).score / 100),
        "eval_chrf": min(1.0, sacrebleu.corpus_chrf(answers, [references]).score / 100),
        "eval_rouge_l": sum(each.rouge_l for each in scores) / len(scores),
        "eval_exact_match": sum(each.exact for each in scores) / len(scores),
    }
