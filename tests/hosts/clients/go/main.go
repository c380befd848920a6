// The official SDK for Go: host URL
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func main() {
	ctx := context.Background()
	client := mcp.NewClient(&mcp.Implementation{Name: "host-go", Version: "1.0"}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: os.Args[1]}, nil)
	if err != nil {
		log.Fatal(err)
	}
	tools, err := session.ListTools(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, tool := range tools.Tools {
		fmt.Println(tool.Name)
	}
	call := func(name string, arguments any) {
		result, err := session.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: arguments})
		if err != nil {
			fmt.Println(name, "refused:", err)
			return
		}
		fmt.Println(name, "failed:", result.IsError)
	}
	call("add", map[string]any{"a": 1, "b": 2})
	call("add", map[string]any{"a": 3, "b": 4})
	call("fail", map[string]any{})
	if err := session.Close(); err != nil {
		fmt.Println("not closed:", err)
	}
}
