"""Makes mpnet.safetensors, which tests/encoders read: SAT's text encoder in miniature, by Hugging Face's transformers.

Run in an environment of its own: pip install torch transformers safetensors; python tests/golden/make_mpnet.py
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

PIECES = (
    *("<s>", "<pad>", "</s>", "<unk>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("left", "right", "kidney", "liver", "tumo", "##ur", "##s", "l", "##1", "vertebra", "(", ")", "-", "of", "the"),
    *("a", "##orta", "##a", "gall", "##bladder", "<mask>"),
)
TEXTS = ("Left Kidney", "liver tumours", "L1 vertebra (of the aorta)", "gallbladder-xyz", "ôf", "", "kidney " * 300)
MODALITIES = ("ct", "mri", "us", "pet")
WIDTH, HEADS, LAYERS, EXPANDED, POSITIONS, SPREAD = 8, 2, 2, 16, 260, 0.4


def main() -> None:
    """Write the file beside this one."""
    torch.manual_seed(0)
    model = MPNetModel(
        MPNetConfig(
            vocab_size=len(PIECES),
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=EXPANDED,
            max_position_embeddings=POSITIONS,
            layer_norm_eps=1e-5,
        )
    ).eval()
    projection = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    modalities = nn.Embedding(len(MODALITIES), WIDTH)
    for part in (model, projection, modalities):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=SPREAD)
    tokenizer = MPNetTokenizer(vocab={piece: number for number, piece in enumerate(PIECES)}, unk_token="[UNK]")

    rows = []
    for text in TEXTS:
        pieces = ["[CLS]", *tokenizer.tokenize(text.lower()), "[SEP]"]
        if len(pieces) > 256:
            pieces = [*pieces[:255], "[SEP]"]
        rows.append(torch.tensor(tokenizer.convert_tokens_to_ids(pieces)))
    weights = {f"module.text_tower.biolord.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    weights |= {f"module.projection_layer.{name}": tensor for name, tensor in projection.state_dict().items()}
    weights["module.modality_embed.weight"] = modalities.weight.detach()
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    mask = (ids > 0).long()
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        projected = projection(pooled)
        queries = projected + modalities(torch.tensor([MODALITIES.index("mri")] * len(TEXTS)))
        # the bias of the first token with all and of all with the first, from a matrix that says the bucket's number
        model.encoder.relative_attention_bias.weight.copy_(torch.arange(32.0)[:, None].expand(32, HEADS))
        bias = model.encoder.compute_position_bias(torch.zeros(1, 200, WIDTH))[0, 0].to(torch.uint8)

    results = {
        "ids": ids.short(),
        "hidden_short": hidden[:-1, :12],
        "hidden_long": hidden[-1],
        "queries_mri": queries,
        "buckets_ahead": bias[0],
        "buckets_behind": bias[:, 0],
    }
    metadata = {
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "pieces": json.dumps(PIECES),
        "texts": json.dumps(TEXTS),
    }
    tensors = {name: tensor.contiguous() for name, tensor in {**weights, **results}.items()}
    path = Path(__file__).with_name("mpnet.safetensors")
    save_file(tensors, path, metadata)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
