"""FastV: An Image is Worth 1/2 Tokens After Layer 2 (arXiv 2403.06764).

    score[i] = mean over heads of Attn(last prompt token → visual token i) in the language model's second block
    kept from the third block on = the highest scores of the whole image

The paper's: K = 2 with this score; positions stay. Its released code reads the attention of the block before the one
at which it prunes, so the second (0-based index 1).
Ours: nothing in the score. Blocks one and two see every token (`prunes_after`), so at an equal budget this method
computes more than those that prune the input; newline rows are not ranked.
"""

from dataclasses import dataclass
from typing import ClassVar

from ptp.benchmarks.methods.budget import top
from ptp.benchmarks.methods.view import Choice, View


@dataclass(frozen=True, kw_only=True)
class FastV:
    """Keep what the prompt's last token attends to."""

    name: str = "fastv"
    sees_question: ClassVar[bool] = True
    prunes_after: ClassVar[int] = 2

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Rank by the language model's attention."""
        return Choice(positions=top(view.positions, view.need("question_attention")[view.positions], budget))
