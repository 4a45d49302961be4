{{/* Chart name, shortened to what a label value holds. */}}
{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of all objects: the release's, with the chart's appended unless it is part of it. The 45 characters leave
room for the suffixes of roles. */}}
{{- define "finetune-operator.fullname" -}}
{{- $name := include "finetune-operator.name" . }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- end }}

{{/* Name of cluster-wide objects: releases of the same name in two namespaces must not collide. */}}
{{- define "finetune-operator.clustername" -}}
{{- include "finetune-operator.fullname" . }}
{{- if ne .Release.Namespace (include "finetune-operator.fullname" .) }}-{{ .Release.Namespace }}{{ end }}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: finetune-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "finetune-operator.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "finetune-operator.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{/* Image reference of a list: {repository, tag, digest} and the tag to use without one. */}}
{{- define "finetune-operator.image" -}}
{{- $image := first . }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default (last .) $image.tag) }}
{{- end }}
{{- end }}

{{/* The FineTuneRuntime as the operator creates it. */}}
{{- define "finetune-operator.defaultRuntime" -}}
{{- $image := include "finetune-operator.image" (list .Values.defaultRuntime.image .Chart.AppVersion) -}}
apiVersion: finetune-operator.io/v1alpha1
kind: FineTuneRuntime
metadata:
  name: {{ .Values.defaultRuntime.name }}
  labels:
    app.kubernetes.io/part-of: finetune-operator
spec:
  {{- mergeOverwrite (dict "image" $image) .Values.defaultRuntime.spec | toYaml | nindent 2 }}
{{- end }}
