{{- define "edgefleet-agent.labels" -}}
app.kubernetes.io/name: edgefleet-agent
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Where the site's assignments are, at the hub and here. */}}
{{- define "edgefleet-agent.siteNamespace" -}}
edgesite-{{ .Values.site }}
{{- end }}

{{- define "edgefleet-agent.claim" -}}
{{ .Values.storage.existingClaim | default "edgefleet-state" }}
{{- end }}

{{- define "edgefleet-agent.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "edgefleet-agent.gatewayImage" -}}
{{- if or .Values.gateway.digest .Values.gateway.tag -}}
{{ .Values.image.repository }}{{ if .Values.gateway.digest }}@{{ .Values.gateway.digest }}{{ else }}:{{ .Values.gateway.tag }}{{ end }}
{{- else -}}
{{ include "edgefleet-agent.image" . }}
{{- end -}}
{{- end }}

{{/* What both pods have in common. */}}
{{- define "edgefleet-agent.pod" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}{{ printf "\n  - name: %s" . }}{{ end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "edgefleet-agent.container" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
