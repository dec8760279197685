{{/* The hub as the API server sees it. */}}
{{- define "edgefleet.hub" -}}
system:serviceaccount:{{ .Release.Namespace }}:edgefleet-hub
{{- end }}

{{- define "edgefleet.labels" -}}
app.kubernetes.io/name: edgefleet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* What selects the hub's pods; it must never change. */}}
{{- define "edgefleet.selector" -}}
app.kubernetes.io/name: edgefleet
app.kubernetes.io/component: hub
{{- end }}

{{- define "edgefleet.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
