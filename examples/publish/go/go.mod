module heliograph.example/publish

go 1.24.0

require (
	github.com/google/uuid v1.6.0
	github.com/linkedin/goavro/v2 v2.14.0
	github.com/twmb/franz-go v1.20.0
)

require (
	github.com/golang/snappy v0.0.1 // indirect
	github.com/klauspost/compress v1.18.0 // indirect
	github.com/pierrec/lz4/v4 v4.1.22 // indirect
	github.com/twmb/franz-go/pkg/kmsg v1.12.0 // indirect
)
