{{- define "order-service.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of a process's resources. Call it with a list: the root, the process. */}}
{{- define "order-service.process" -}}
{{- printf "%s-%s" (include "order-service.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{/* The Service in front of a process's admin port. The HTTP port of `web` has another one. */}}
{{- define "order-service.adminService" -}}
{{- include "order-service.process" . -}}{{- if eq (index . 1) "web" -}}-admin{{- end -}}
{{- end -}}

{{/* The admin ports of all pods, for the operator's page: these Services have the addresses of their pods. */}}
{{- define "order-service.adminAddresses" -}}
{{- $addresses := list -}}
{{- range $process := list "worker" "projector" "web" -}}
{{- $addresses = append $addresses (printf "%s:9100" (include "order-service.adminService" (list $ $process))) -}}
{{- end -}}
{{- join "," $addresses -}}
{{- end -}}

{{- define "order-service.serviceAccount" -}}
{{- default (ternary (include "order-service.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* The labels that select all pods of the release. */}}
{{- define "order-service.releaseLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels that select the pods of a process, or of one projector. Call it with a list: the root, the process, its number. */}}
{{- define "order-service.selectorLabels" -}}
{{ include "order-service.releaseLabels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if gt (len .) 2 }}
order-service/projector-index: {{ index . 2 | quote }}
{{- end }}
{{- end -}}

{{/* The labels of a resource. Call it with a list: the root, the process or another part. */}}
{{- define "order-service.labels" -}}
{{- $root := index . 0 -}}
{{ include "order-service.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* A setting that is in use, or its default, as a text. Call it with a list: the root, the process, the name. */}}
{{- define "order-service.setting" -}}
{{- $configuration := include "order-service.configuration" (list (index . 0) (index . 1)) | fromJson -}}
{{- if hasKey $configuration.settings (index . 2) -}}
{{- include "order-service.text" (get $configuration.settings (index . 2)) -}}
{{- else -}}
{{- $known := (index . 0).Files.Get "files/settings.yaml" | fromYaml -}}
{{- include "order-service.text" (get $known (index . 2)).default -}}
{{- end -}}
{{- end -}}

{{/* A value as the environment has it: numbers without an exponent. */}}
{{- define "order-service.text" -}}
{{- if kindIs "string" . -}}{{- . -}}{{- else -}}{{- toJson . -}}{{- end -}}
{{- end -}}

{{/*
What a process gets of the values: {settings, secrets, files}, as JSON. Those of the process itself precede those of all.
It fails for a name that is not a setting, one of another kind, and one that the process does not use.
*/}}
{{- define "order-service.configuration" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
{{- $own := index $root.Values $process -}}
{{- $known := $root.Files.Get "files/settings.yaml" | fromYaml -}}
{{- $result := dict -}}
{{- range $part, $kind := dict "settings" "value" "secrets" "secret" "files" "file" -}}
  {{- range $source := list (index $root.Values $part) (index $own $part) -}}
    {{- range $name, $value := $source -}}
      {{- $setting := get $known $name -}}
      {{- if not $setting -}}
        {{- fail (printf "%s.%s: no process of the chart has this setting; docs/reference/settings.md lists them" $part $name) -}}
      {{- else if eq $setting.kind "chart" -}}
        {{- fail (printf "%s.%s: the chart sets it" $part $name) -}}
      {{- else if eq $setting.kind "twin" -}}
        {{- fail (printf "%s.%s: set files.%s_FILE" $part $name $name) -}}
      {{- else if ne $setting.kind $kind -}}
        {{- fail (printf "%s.%s: it is a %s: set it in %ss" $part $name $setting.kind (ternary "setting" $setting.kind (eq $setting.kind "value"))) -}}
      {{- end -}}
      {{- if and (ne $kind "value") (not (kindIs "invalid" $value)) -}}
        {{- include "order-service.checkReference" (list $part $name $value) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
  {{- range $name, $_ := index $own $part -}}
    {{- if not (has $process (get $known $name).usedBy) -}}
      {{- fail (printf "%s.%s.%s: %s does not use it" $process $part $name $process) -}}
    {{- end -}}
  {{- end -}}
  {{- $merged := merge (deepCopy (index $own $part)) (index $root.Values $part) -}}
  {{- $used := dict -}}
  {{- range $name, $value := $merged -}}
    {{- if and (has $process (get $known $name).usedBy) (not (kindIs "invalid" $value)) -}}
      {{- $_ := set $used $name $value -}}
    {{- end -}}
  {{- end -}}
  {{- $_ := set $result $part $used -}}
{{- end -}}
{{- if not (hasKey $result.settings "KAFKA_BOOTSTRAP_SERVERS") -}}
  {{- fail "settings.KAFKA_BOOTSTRAP_SERVERS is required" -}}
{{- end -}}
{{- if and (eq $process "worker") (not (hasKey $result.settings "USER_SERVICE_URL")) -}}
  {{- fail "settings.USER_SERVICE_URL is required" -}}
{{- end -}}
{{- if and (ne $process "worker") (not (hasKey $result.secrets "ORDERS_DATABASE_URL")) -}}
  {{- fail "secrets.ORDERS_DATABASE_URL is required, with a URL of PostgreSQL: the pods share the views" -}}
{{- end -}}
{{- if and (eq $process "web") (not (or (hasKey $result.settings "ORDERS_JWT_JWKS_URL") (hasKey $result.files "ORDERS_JWT_KEY_FILE"))) -}}
  {{- fail "settings.ORDERS_JWT_JWKS_URL or files.ORDERS_JWT_KEY_FILE is required: without one, web serves loopback only" -}}
{{- end -}}
{{- toJson $result -}}
{{- end -}}

{{/* Fails unless a value refers to a secret or a file. Call it with a list: the part of the values, the name, the value. */}}
{{- define "order-service.checkReference" -}}
{{- $forms := list "{secret: NAME, key: KEY}" -}}
{{- if eq (index . 0) "files" -}}
  {{- $forms = append $forms "{configMap: NAME, key: KEY} or {serviceAccountToken: {audience: NAME}}" -}}
{{- end -}}
{{- $keys := "" -}}
{{- if kindIs "map" (index . 2) -}}
  {{- $keys = keys (index . 2) | sortAlpha | join "," -}}
{{- end -}}
{{- $accepted := list "key,secret" -}}
{{- if eq (index . 0) "files" -}}
  {{- $accepted = append (append $accepted "configMap,key") "serviceAccountToken" -}}
{{- end -}}
{{- if not (has $keys $accepted) -}}
  {{- fail (printf "%s.%s: it must be %s" (index . 0) (index . 1) (join ", " $forms)) -}}
{{- end -}}
{{- end -}}

{{/* The environment of a process. Call it with a list: the root, the process, and the number of a projector. */}}
{{- define "order-service.environment" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
{{- $configuration := include "order-service.configuration" . | fromJson -}}
- name: ORDERS_ADMIN_PORT
  value: "9100"
- name: TMPDIR
  value: /data
{{- if ne $process "worker" }}
- name: ORDERS_DATA_DIR
  value: /data
{{- end }}
{{- if eq $process "worker" }}
{{- if $root.Values.worker.persistence.enabled }}
- name: ORDERS_TABLE_DIR
  value: {{ $root.Values.worker.persistence.mountPath }}/table
{{- else if eq (include "order-service.setting" (list $root "worker" "ORDERS_TABLE")) "rocksdb" }}
  {{- fail "ORDERS_TABLE=rocksdb needs worker.persistence.enabled: the tables need a volume" }}
{{- end }}
# The pod that replaces this one is the same member of the group, and has the same partitions.
- name: ORDERS_INSTANCE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- else if eq $process "projector" }}
# The projectors share the partitions: this one reads those of its number.
- name: ORDERS_PROJECTORS
  value: {{ int $root.Values.projector.replicas | quote }}
- name: ORDERS_PROJECTOR_INDEX
  value: {{ index . 2 | quote }}
{{- end }}
{{- $defaults := dict "ORDERS_HOST" "0.0.0.0" "ORDERS_LOG" "json" }}
{{- if eq $process "web" }}
{{- $_ := set $defaults "ORDERS_ADMIN_ADDRESSES" (include "order-service.adminAddresses" $root) }}
{{- end }}
{{- range $name, $value := merge (deepCopy $configuration.settings) $defaults }}
- name: {{ $name }}
  value: {{ include "order-service.text" $value | quote }}
{{- end }}
{{- range $name, $_ := $configuration.secrets }}
- name: {{ $name }}_FILE
  value: /etc/order-service/{{ $name }}
{{- end }}
{{- range $name, $_ := $configuration.files }}
- name: {{ $name }}
  value: /etc/order-service/{{ $name }}
{{- end }}
{{- with (index $root.Values $process).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The files of a process: each secret and file under the name of its setting. */}}
{{- define "order-service.volumes" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
{{- $configuration := include "order-service.configuration" . | fromJson -}}
- name: data
  emptyDir:
    sizeLimit: {{ $root.Values.dataVolume.sizeLimit }}
{{- with merge (dict) $configuration.secrets $configuration.files }}
- name: settings
  projected:
    defaultMode: 0440
    sources:
    {{- range $name, $from := . }}
      {{- if $from.serviceAccountToken }}
      - serviceAccountToken:
          path: {{ $name }}
          {{- toYaml $from.serviceAccountToken | nindent 10 }}
      {{- else }}
      - {{ ternary "secret" "configMap" (hasKey $from "secret") }}:
          name: {{ default $from.configMap $from.secret | quote }}
          items:
            - key: {{ $from.key | quote }}
              path: {{ $name }}
      {{- end }}
    {{- end }}
{{- end }}
{{- with (index $root.Values $process).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "order-service.volumeMounts" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
{{- $configuration := include "order-service.configuration" . | fromJson -}}
- name: data
  mountPath: /data
{{- if and (eq $process "worker") $root.Values.worker.persistence.enabled }}
- name: state
  mountPath: {{ $root.Values.worker.persistence.mountPath }}
{{- end }}
{{- if or $configuration.secrets $configuration.files }}
- name: settings
  mountPath: /etc/order-service
  readOnly: true
{{- end }}
{{- with (index $root.Values $process).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "order-service.image" -}}
{{- $root := index . 0 -}}
{{- $image := merge (deepCopy (index $root.Values (index . 1)).image) $root.Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/*
All three probes ask the admin port, which has a thread of its own and listens before Kafka is asked.
Startup: the port listens, once Python has imported the program. Nothing else is in this time: a claim may take minutes.
Liveness: the process answers. It does not depend on Kafka, the database or the User Service, which a restart does not
bring back. A process whose event loop hangs ends by itself.
Readiness: the process does its work; its body has the reasons.
*/}}
{{- define "order-service.probes" -}}
startupProbe:
  httpGet:
    path: /health/live
    port: admin
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 30
livenessProbe:
  httpGet:
    path: /health/live
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /health/ready
    port: admin
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{/* What the pods of all processes have in common, around their container. */}}
{{- define "order-service.podSpec" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
{{- $own := index $root.Values $process -}}
serviceAccountName: {{ include "order-service.serviceAccount" $root }}
automountServiceAccountToken: false
# For a Service called orders-kafka, Kubernetes would set ORDERS_KAFKA_PORT.
enableServiceLinks: false
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
terminationGracePeriodSeconds: {{ $own.terminationGracePeriodSeconds }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $own.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $own.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "order-service.selectorLabels" (list $root $process) | nindent 8 }}
  {{- end }}
{{- end }}
volumes:
  {{- include "order-service.volumes" . | nindent 2 }}
{{- end -}}

{{/* The container of a process, without what only this process has. */}}
{{- define "order-service.container" -}}
{{- $root := index . 0 -}}
{{- $process := index . 1 -}}
{{- $own := index $root.Values $process -}}
name: {{ $process }}
image: {{ include "order-service.image" . | quote }}
imagePullPolicy: {{ (merge (deepCopy $own.image) $root.Values.image).pullPolicy }}
args: [{{ $process }}]
securityContext:
  {{- toYaml $root.Values.securityContext | nindent 2 }}
resources:
  {{- toYaml $own.resources | nindent 2 }}
env:
  {{- include "order-service.environment" . | nindent 2 }}
volumeMounts:
  {{- include "order-service.volumeMounts" . | nindent 2 }}
{{ include "order-service.probes" . }}
{{- end -}}

{{- define "order-service.podMetadata" -}}
{{- $own := index (index . 0).Values (index . 1) -}}
labels:
  {{- include "order-service.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
  {{- with $own.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $own.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
