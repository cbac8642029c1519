"""The GraphQL operations that Dagster's own UI sends, cut down to the fields used here."""

_RUN = """
fragment RunFields on Run {
  runId status creationTime jobName
  tags { key value }
  assetSelection { path }
}
"""

_EVENT = """
fragment MetadataFields on MetadataEntry {
  __typename label
  ... on TextMetadataEntry { text }
  ... on MarkdownMetadataEntry { text: mdStr }
  ... on PathMetadataEntry { text: path }
  ... on UrlMetadataEntry { text: url }
  ... on FloatMetadataEntry { floatValue }
  ... on IntMetadataEntry { intRepr }
  ... on BoolMetadataEntry { boolValue }
  ... on JsonMetadataEntry { jsonString }
  ... on TimestampMetadataEntry { timestamp }
  ... on TableMetadataEntry { table { records } }
}
"""

WORKSPACE = """
query {
  workspaceOrError {
    __typename
    ... on Workspace {
      locationEntries {
        name loadStatus
        locationOrLoadError {
          __typename
          ... on RepositoryLocation { repositories { name } }
          ... on PythonError { message causes { message } }
        }
      }
    }
    ... on Error { message }
  }
}
"""

DAEMONS = """
query {
  instance {
    __typename
    daemonHealth { allDaemonStatuses { daemonType required healthy } }
  }
}
"""

LAUNCH_RUN = """
mutation ($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}
"""

LAUNCH_BACKFILL = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}
"""

CANCEL_BACKFILL = """
mutation ($backfillId: String!) {
  cancelPartitionBackfill(backfillId: $backfillId) {
    __typename
    ... on Error { message }
  }
}
"""

BACKFILL = """
query ($backfillId: String!) {
  partitionBackfillOrError(backfillId: $backfillId) {
    __typename
    ... on PartitionBackfill {
      id status
      error { message }
      assetBackfillData {
        assetBackfillStatuses {
          __typename
          ... on AssetPartitionsStatusCounts {
            assetKey { path }
            numPartitionsTargeted numPartitionsInProgress
            numPartitionsMaterialized numPartitionsFailed
          }
          ... on UnpartitionedAssetStatus {
            assetKey { path }
            inProgress materialized failed
          }
        }
      }
    }
    ... on Error { message }
  }
}
"""

PARTITIONS = """
fragment DefaultFields on DefaultPartitionStatuses {
  materializedPartitions failedPartitions materializingPartitions
}
fragment TimeFields on TimePartitionStatuses { ranges { startKey endKey status } }
query ($assetKey: AssetKeyInput!) {
  assetNodeOrError(assetKey: $assetKey) {
    __typename
    ... on AssetNode {
      partitionKeysByDimension { name partitionKeys }
      assetPartitionStatuses {
        __typename
        ...DefaultFields
        ...TimeFields
        ... on MultiPartitionStatuses {
          primaryDimensionName
          ranges {
            primaryDimStartKey primaryDimEndKey
            secondaryDim { __typename ...DefaultFields ...TimeFields }
          }
        }
      }
    }
    ... on Error { message }
  }
}
"""

LATEST = """
query ($assetKeys: [AssetKeyInput!]!) {
  assetsLatestInfo(assetKeys: $assetKeys) {
    unstartedRunIds inProgressRunIds
    latestMaterialization { runId }
    latestRun { runId status }
  }
}
"""

ASSET_EVENTS = (
    _EVENT
    + """
fragment MaterializationFields on MaterializationEvent {
  runId timestamp partition
  metadataEntries { ...MetadataFields }
}
fragment ObservationFields on ObservationEvent {
  runId timestamp partition
  metadataEntries { ...MetadataFields }
}
query ($assetKey: AssetKeyInput!, $limit: Int!) {
  assetOrError(assetKey: $assetKey) {
    __typename
    ... on Asset {
      assetMaterializations(limit: $limit) { ...MaterializationFields }
      assetObservations(limit: $limit) { ...ObservationFields }
    }
    ... on Error { message }
  }
}
"""
)

CHECK_EXECUTIONS = (
    _EVENT
    + """
query ($assetKey: AssetKeyInput!, $checkName: String!, $limit: Int!) {
  assetCheckExecutions(assetKey: $assetKey, checkName: $checkName, limit: $limit) {
    runId status timestamp
    evaluation { severity description metadataEntries { ...MetadataFields } }
  }
}
"""
)

RUNS = (
    _RUN
    + """
query ($filter: RunsFilter!, $limit: Int!) {
  runsOrError(filter: $filter, limit: $limit) {
    __typename
    ... on Runs { results { ...RunFields } }
    ... on Error { message }
  }
}
"""
)

RUN_ERRORS = """
query ($runId: ID!, $cursor: String) {
  logsForRun(runId: $runId, afterCursor: $cursor, limit: 1000) {
    __typename
    ... on EventConnection {
      cursor hasMore
      events {
        __typename
        ... on MessageEvent { message }
        ... on ExecutionStepFailureEvent { stepKey error { message causes { message } } }
        ... on RunFailureEvent { error { message } }
      }
    }
    ... on Error { message }
  }
}
"""

TERMINATE_RUN = """
mutation ($runId: String!, $policy: TerminateRunPolicy!) {
  terminateRun(runId: $runId, terminatePolicy: $policy) {
    __typename
    ... on TerminateRunFailure { message }
    ... on Error { message }
  }
}
"""

DELETE_RUN = """
mutation ($runId: String!) {
  deleteRun(runId: $runId) {
    __typename
    ... on Error { message }
  }
}
"""

REEXECUTE_RUN = """
mutation ($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}
"""

SENSOR = """
query ($selector: SensorSelector!, $limit: Int!) {
  sensorOrError(sensorSelector: $selector) {
    __typename
    ... on Sensor {
      minIntervalSeconds
      sensorState {
        id status
        ticks(limit: $limit) { timestamp status skipReason cursor runIds error { message } }
      }
    }
    ... on Error { message }
  }
}
"""

START_SENSOR = """
mutation ($selector: SensorSelector!) {
  startSensor(sensorSelector: $selector) {
    __typename
    ... on Error { message }
  }
}
"""

STOP_SENSOR = """
mutation ($id: String!) {
  stopSensor(id: $id) {
    __typename
    ... on Error { message }
  }
}
"""

START_SCHEDULE = """
mutation ($selector: ScheduleSelector!) {
  startSchedule(scheduleSelector: $selector) {
    __typename
    ... on ScheduleStateResult { scheduleState { id } }
    ... on Error { message }
  }
}
"""

STOP_SCHEDULE = """
mutation ($id: String!) {
  stopRunningSchedule(id: $id) {
    __typename
    ... on Error { message }
  }
}
"""

ADD_PARTITION = """
mutation ($repository: RepositorySelector!, $name: String!, $key: String!) {
  addDynamicPartition(
    repositorySelector: $repository, partitionsDefName: $name, partitionKey: $key
  ) {
    __typename
    ... on Error { message }
  }
}
"""

DELETE_PARTITIONS = """
mutation ($repository: RepositorySelector!, $name: String!, $keys: [String!]!) {
  deleteDynamicPartitions(
    repositorySelector: $repository, partitionsDefName: $name, partitionKeys: $keys
  ) {
    __typename
    ... on Error { message }
  }
}
"""

RELOAD_LOCATION = """
mutation ($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) {
    __typename
    ... on WorkspaceLocationEntry {
      locationOrLoadError {
        __typename
        ... on PythonError { message causes { message } }
      }
    }
    ... on Error { message }
  }
}
"""
