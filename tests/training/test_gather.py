"""A batch collected from all processes, with the gradient of this process's part."""

import pytest
import torch

from lmm_ecr.losses import RegressionLoss
from lmm_ecr.training.gather import gather_with_gradient


class OneOfMany:
    """The part of an Accelerator that gathering uses, with the other processes' tensors at hand."""

    def __init__(self, rank, all_scores, all_targets):
        self.process_index, self.num_processes = rank, len(all_scores)
        self.parts = [torch.stack([s.detach(), t], dim=1) for s, t in zip(all_scores, all_targets, strict=True)]

    def gather(self, part):
        torch.testing.assert_close(part, self.parts[self.process_index], rtol=0, atol=0, equal_nan=True)
        return torch.cat(self.parts)


def test_one_process_keeps_its_tensors():
    scores, targets = torch.randn(3, 2, requires_grad=True), torch.rand(3, 2)
    gathered = gather_with_gradient(OneOfMany(0, [scores], [targets]), scores, targets)
    assert gathered[0] is scores
    assert gathered[1] is targets


@pytest.mark.parametrize("loss", ["mse", "mse + 0.5*plcc", "rank"])
def test_gradients_of_three_processes_add_up_to_those_of_the_whole_batch(loss):
    torch.manual_seed(0)
    whole = torch.randn(12, 2, requires_grad=True)
    targets = torch.rand(12, 2)
    targets[4, 1] = float("nan")
    loss = RegressionLoss(loss)
    expected = loss(whole, targets)
    expected.backward()

    parts = [p.clone().requires_grad_() for p in whole.detach().split(4)]
    for rank, (part, own) in enumerate(zip(parts, targets.split(4), strict=True)):
        scores, labels = gather_with_gradient(OneOfMany(rank, parts, targets.split(4)), part, own)
        assert scores.shape == labels.shape == (12, 2)
        torch.testing.assert_close(labels, targets, equal_nan=True)
        value = loss(scores, labels)
        torch.testing.assert_close(value, expected)
        value.backward()
    torch.testing.assert_close(torch.cat([p.grad for p in parts]), whole.grad)
