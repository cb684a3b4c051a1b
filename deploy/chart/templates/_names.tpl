{{/* Names of 63 characters at most: they also become labels. */}}
{{- define "netverdict.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The release's name, with the chart's unless it already says so. */}}
{{- define "netverdict.fullname" -}}
{{- $name := include "netverdict.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What the DaemonSet selects; may never change during the life of a release. */}}
{{- define "netverdict.selectorLabels" -}}
app.kubernetes.io/name: {{ include "netverdict.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of every object. Helm adds managed-by itself when it installs. */}}
{{- define "netverdict.labels" -}}
{{ include "netverdict.selectorLabels" . }}
app.kubernetes.io/component: agent
app.kubernetes.io/part-of: netverdict
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "netverdict.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "netverdict.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed with serviceAccount.create=false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "netverdict.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* Root, but hardly more than an ordinary user: the argument is capabilities to add. */}}
{{- define "netverdict.securityContext" -}}
# Root, because the capabilities of a container reach no other user.
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile:
  {{- with .Values.seccomp.localhostProfile }}
  type: Localhost
  localhostProfile: {{ . }}
  {{- else }}
  type: RuntimeDefault
  {{- end }}
capabilities:
  drop: [ALL]
{{- end }}
