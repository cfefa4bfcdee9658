"""Wrong ``accept_draft``."""

import torch
from torch import Tensor

from reference.ops.accept_draft import residual

from .arithmetic import R

Accepted = tuple[int, int]


def _drawn(distribution: Tensor, uniform: Tensor) -> int:
    return int(R.draw(distribution[None], uniform[None])[0])


def accept_if_equal(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    for i, token in enumerate(draft_ids.tolist()):
        if int(target[i].argmax()) != token:
            return i, _drawn(target[i], uniforms[-1])
    return len(draft_ids), _drawn(target[-1], uniforms[-1])


def accept_without_residual(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    accepted, _ = R.accept_draft(target, draft, draft_ids, uniforms)
    return accepted, _drawn(target[accepted], uniforms[-1])


def accept_residual_not_renormalised(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    accepted, following = R.accept_draft(target, draft, draft_ids, uniforms)
    if accepted == len(draft_ids):
        return accepted, following
    return accepted, _drawn((target[accepted] - draft[accepted]).clamp(min=0), uniforms[-1])


def accept_replaces_from_the_draft(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    accepted, following = R.accept_draft(target, draft, draft_ids, uniforms)
    return accepted, following if accepted == len(draft_ids) else _drawn(draft[accepted], uniforms[-1])


def accept_by_target(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    return R.accept_draft(target, torch.maximum(draft, torch.ones_like(draft)), draft_ids, uniforms)


def accept_leniently(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    """A draft that is half as likely under the target as under the draft is good enough."""
    accepted, _ = R.accept_draft(2 * target, draft, draft_ids, uniforms)
    rejected = accepted < len(draft_ids)
    return accepted, _drawn(residual(target[accepted], draft[accepted]) if rejected else target[accepted], uniforms[-1])


def accept_with_one_number(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    """Every position is decided by the same uniform number."""
    return R.accept_draft(target, draft, draft_ids, uniforms[-1:].expand_as(uniforms))


def accept_everything(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    return len(draft_ids), _drawn(target[-1], uniforms[-1])


def accept_nothing(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    """Right tokens, and every draft for nothing: the first token is drawn from the target."""
    return 0, _drawn(target[0], uniforms[-1])


def accept_past_a_rejection(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    """Counts accepted drafts, also those that follow a rejected one."""
    accepted = sum(
        R.accept_draft(target[i : i + 2], draft[i : i + 1], draft_ids[i : i + 1], uniforms[[i, -1]])[0]
        for i in range(len(draft_ids))
    )
    return accepted, _drawn(target[accepted], uniforms[-1])


def accept_no_bonus(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    accepted, following = R.accept_draft(target, draft, draft_ids, uniforms)
    return (accepted - 1, int(draft_ids[-1])) if accepted and accepted == len(draft_ids) else (accepted, following)


def accept_bonus_of_the_row_before(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> Accepted:
    accepted, following = R.accept_draft(target, draft, draft_ids, uniforms)
    if accepted and accepted == len(draft_ids):
        following = _drawn(target[accepted - 1], uniforms[-1])
    return accepted, following
