"""`difflistener experiment`: a paper's table in one command. `config`: what a recipe says; `cells`: what is computed, once;
`rows`: what each cell does; `report`: the table and its pictures."""
