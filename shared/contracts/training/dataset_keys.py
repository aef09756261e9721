"""Tables of dataloader keys that are not simply used: keys without an effect here, and refused ones with advice."""

IGNORED = frozenset(
    """
    metadata_backend metadata_update_interval cache_dir cache_dir_vae cache_file_suffix text_embeds image_embeds
    default skip_file_discovery preserve_data_backend_cache write_batch_size read_batch_size text_encoder_batch_size
    text_embed_batch_size image_processing_batch_size vae_cache_ondemand vae_cache_disable text_cache_ondemand
    text_cache_disable hash_filenames shorten_filenames scan_for_errors delete_unwanted_images
    delete_problematic_images delete_nsfw_images name description disable_validation
    """.split()  # noqa: SIM905 -- a word list reads better
)
"""Keys about places, caches and speed. Caches are keyed by content here, and files of the dataset are never deleted."""

TABLE_IGNORED = frozenset({"width_column", "height_column"})
"""Sizes are read from the pictures themselves."""

_CLOUD = "Upload the dataset with the job, and use type local with instance_data_dir."
_CONDITIONING = "Remove it: this build trains from pictures and captions alone."
_NO_TEACHER = "Remove it: only LyCORIS adapters learn from regularisation data; mix the pictures in with repeats."
REFUSED: dict[str, str] = {
    **dict.fromkeys(("conditioning_data", "conditioning_type", "conditioning", "conditioning_config"), _CONDITIONING),
    **dict.fromkeys(("source_dataset_id", "conditioning_image_embeds", "slider_strength"), _CONDITIONING),
    **dict.fromkeys(("video", "audio", "s2v_datasets", "grounding"), "Remove it: this build trains on still images."),
    **dict.fromkeys(("is_regularisation_data", "is_regularization_data"), _NO_TEACHER),
    **dict.fromkeys(("huggingface", "webshart", "dataset_name"), _CLOUD),
    **dict.fromkeys(("aws_bucket_name", "aws_data_prefix", "aws_endpoint_url", "aws_region_name"), _CLOUD),
    **dict.fromkeys(("csv", "csv_file", "csv_caption_column", "csv_url_column", "csv_cache_dir"),
                    "Download the pictures, and use caption_strategy parquet: its path may name a CSV file."),
    "caption_filter_list": "Remove the words from the captions before uploading them.",
    "prepend_prompt": "Use instance_prompt with prepend_instance_prompt.",
    "caption_shuffle_seed": "Use caption_shuffle with seed.",
    "timestep_sampling_offset": "Leave it at 0.",
}  # fmt: skip
"""Keys that would change the result: refused unless switched off, with what to do instead."""

OTHER_TYPES = {
    "aws": _CLOUD, "huggingface": _CLOUD, "webshart": _CLOUD, "memory": _CLOUD,
    "csv": REFUSED["csv"],
    "parquet": "Use type local with caption_strategy parquet.",
}  # fmt: skip
OTHER_CAPTIONS = {
    "csv": "Use caption_strategy parquet: its path may name a CSV file.",
    "huggingface": _CLOUD,
    "webshart": _CLOUD,
}
OTHER_DATASET_TYPES = {
    **dict.fromkeys(("conditioning", "conditioning_image_embeds"), "Remove the entry: this build has no conditioning."),
    **dict.fromkeys(("video", "audio", "caption", "grounding"), "Remove the entry: this build trains on still images."),
}
OTHER_CROP_STYLES = {"face": "Use center: this build finds no faces."}
LIMITS: dict[str, tuple[float, float]] = {
    "repeats": (0, 1_000_000), "resolution": (0.01, 8192), "max_num_samples": (1, 100_000_000),
    "minimum_image_size": (0, 100_000), "maximum_image_size": (0.01, 100_000),
    "target_downsample_size": (0.01, 100_000), "max_upscale_threshold": (0, 100), "probability": (1e-6, 1e6),
    "train_batch_size": (1, 1024), "start_epoch": (1, 100_000), "end_epoch": (1, 100_000),
    "start_step": (0, 10_000_000), "end_step": (1, 10_000_000), "minimum_aspect_ratio": (0, 1000),
    "maximum_aspect_ratio": (0.001, 1000),
}  # fmt: skip
