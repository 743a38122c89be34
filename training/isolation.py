"""Whether packed examples see only themselves: tried on the model at hand, not looked up in a list."""

from __future__ import annotations

from typing import Any

TOLERANCE = 1e-3  # of the largest logit: float32 differs by 1e-6, a leak by 0.1 and more


def check_isolation(model: Any) -> None:
    """ValueError where a packed example's logits depend on its neighbour in the row."""
    import torch

    if model.config.is_encoder_decoder:
        raise ValueError("data.packing is for decoders; this model has an encoder too: set data.packing=false")
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    first, second = torch.arange(5, 12, device=device), torch.arange(3, 8, device=device)
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))]).to(device)
    with torch.no_grad():
        alone = model(input_ids=second[None], use_cache=False).logits[0, -len(second) :]
        both = torch.cat([first, second])[None]
        packed = model(input_ids=both, position_ids=positions[None], use_cache=False).logits[0, -len(second) :]
    model.train(training)
    difference = float((alone - packed).abs().max() / alone.abs().max().clamp(min=1e-9))
    tolerance = TOLERANCE if next(model.parameters()).dtype == torch.float32 else 30 * TOLERANCE
    if not difference <= tolerance:
        raise ValueError(
            f"data.packing: in this architecture packed examples see each other (logits differ by {difference:.1%}); "
            "set data.packing=false"
        )
