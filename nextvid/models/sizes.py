"""Every encoder size in one table (METHOD: NExT-Vid, table 8; V-JEPA 2, table 9; smaller ones for one machine)."""

from nextvid.models.encoder import EncoderConfig

ENCODERS: dict[str, EncoderConfig] = {
    "tiny": EncoderConfig(width=128, depth=4, heads=4, mlp_hidden=512),
    "small": EncoderConfig(width=384, depth=12, heads=6, mlp_hidden=1536),
    "base": EncoderConfig(width=768, depth=12, heads=12, mlp_hidden=3072),
    "vit_l": EncoderConfig(width=1024, depth=24, heads=16, mlp_hidden=4096),
    "vit_h": EncoderConfig(width=1280, depth=32, heads=16, mlp_hidden=5120),
    "vit_g": EncoderConfig(width=1408, depth=40, heads=22, mlp_hidden=6144),
}
