// argolua runs Lua as Argo CD runs it: gopher-lua with the base, package and table libraries only, `obj` as the one global, one second.
// It reads jobs as JSON, {"script": ..., "object": ...}, one after another, and prints what each returned, or the error, one line each.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
	luajson "layeh.com/gopher-json"
)

type job struct {
	Script string         `json:"script"`
	Object map[string]any `json:"object"`
}

type answer struct {
	Returned json.RawMessage `json:"returned,omitempty"`
	Error    string          `json:"error,omitempty"`
}

func main() {
	jobs, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var next job
		err := jobs.Decode(&next)
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = answers.Encode(run(next))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "argolua:", err)
			os.Exit(1)
		}
	}
}

func run(one job) answer {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	libraries := map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	}
	for _, name := range []string{lua.LoadLibName, lua.BaseLibName, lua.TabLibName} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(libraries[name]), Protect: true}, lua.LString(name)); err != nil {
			return answer{Error: err.Error()}
		}
	}
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(limit)
	state.SetGlobal("obj", luajson.DecodeValue(state, one.Object))
	if err := state.DoString(one.Script); err != nil {
		return answer{Error: err.Error()}
	}
	returned, err := luajson.Encode(state.Get(-1))
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Returned: returned}
}
