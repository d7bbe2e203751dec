"""The asset `exports`: results in the formats that `operations.yaml` names, kept in a folder. The job of the pipeline leaves it out."""

import dagster as dg

from assets_defs.partitions import video_partitions
from resources.video_store import VideoStoreResource
from vipe_dag.operations import ExportSettings

EXPORTS = "exports"


def build_exports(settings: ExportSettings) -> list[dg.AssetsDefinition]:
    """The asset, in a group of its own; none when no formats are named."""
    return [_asset(settings)] if settings.formats else []


def _asset(settings: ExportSettings) -> dg.AssetsDefinition:
    @dg.asset(
        name=EXPORTS,
        deps=["frames", "ba_poses", "aligned_depth"],
        partitions_def=video_partitions,
        group_name=EXPORTS,
        description=f"Results in the formats {', '.join(settings.formats)}, in a folder for each video in {settings.folder}.",
    )
    def keep(context: dg.AssetExecutionContext, video_store: VideoStoreResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from vipe_dag.export.kept import keep_exports

        kept = keep_exports(video_store.open(), context.partition_key, settings.formats, str(settings.folder))
        for name, notes in kept.notes.items():
            for note in notes:
                context.log.info("%s: %s", name, note)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(kept.version),
            metadata={
                "status": "written" if kept.written else "current",
                "path": dg.MetadataValue.path(str(kept.path)),
                "formats": ", ".join(settings.formats),
                "files": kept.files,
                "bytes": kept.bytes,
            },
        )

    return keep
