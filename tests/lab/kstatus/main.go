// kstatus reads Kubernetes objects as JSON, one after another, and prints for each what the kstatus library computes, one JSON line each.
// It decides nothing itself: Flux and kpt wait by the same function.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type answer struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	objects, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var object map[string]any
		if err := objects.Decode(&object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			end(err)
		}
		found, err := status.Compute(&unstructured.Unstructured{Object: whole(object)})
		if err != nil {
			end(err)
		}
		if err := answers.Encode(answer{string(found.Status), found.Message}); err != nil {
			end(err)
		}
	}
}

// whole turns the numbers that are whole into int64, as a client of an API server has them: the library reads generations so.
func whole(node map[string]any) map[string]any {
	for key, value := range node {
		node[key] = wholeValue(value)
	}
	return node
}

func wholeValue(value any) any {
	switch it := value.(type) {
	case map[string]any:
		return whole(it)
	case []any:
		for index := range it {
			it[index] = wholeValue(it[index])
		}
	case float64:
		if it == float64(int64(it)) {
			return int64(it)
		}
	}
	return value
}

func end(err error) {
	fmt.Fprintln(os.Stderr, "kstatus:", err)
	os.Exit(1)
}
